"""Tests in several processes without pytest-xdist: every one once, and one file of what they found."""

import subprocess
import sys
import time
from xml.etree import ElementTree

import pytest

from mpamatch.benchmarks import gpu_tests
from mpamatch.benchmarks.gpu_check import CUT

pytestmark = pytest.mark.slow

FILE = """
import os, time
import pytest

@pytest.mark.parametrize("number", range(9))
def test_one(number):
    assert number != 4, "four is wrong"
    if number == 5:
        pytest.skip("no fifth")

def test_last():
    if "BEGUN" in os.environ:
        open(os.environ["BEGUN"], "w").close()
        time.sleep(600)
"""


@pytest.fixture
def few(tmp_path, monkeypatch):
    """Ten tests of which one fails and one is skipped, in place of tests/gpu."""
    (tmp_path / "test_few.py").write_text(FILE)
    monkeypatch.setattr(gpu_tests, "TESTS", (str(tmp_path), "-p", "mpamatch.benchmarks.share"))
    return tmp_path


def run(folder, *words):
    code = gpu_tests.main(["--out", str(folder / "junit.xml"), *words])
    return code, ElementTree.parse(folder / "junit.xml").getroot()


def test_every_test_runs_in_one_process_and_all_stand_in_one_file(few, capsys):
    code, root = run(few, "--processes", "3")
    names = [case.get("name") for case in root.iter("testcase")]
    assert sorted(names) == sorted([*(f"test_one[{number}]" for number in range(9)), "test_last"])
    assert code == 1
    assert {name: root.get(name) for name in gpu_tests.COUNTS} == {
        "tests": "10", "failures": "1", "errors": "0", "skipped": "1",
    }  # fmt: skip
    printed = capsys.readouterr().out
    assert "test_one[4]: AssertionError: four is wrong" in printed
    assert "skipped 1: no fifth" in printed
    assert "8 passed, 1 failed, 1 skipped in 3 processes" in printed


def test_a_share_without_tests_is_no_failure(few):
    code, root = run(few, "--processes", "2", "-k", "test_last")
    assert (code, root.get("tests")) == (0, "1")


def test_when_the_time_is_up_what_was_found_is_kept(few, tmp_path, monkeypatch, capsys):
    """It is up once the last test has begun, however slow the machine is."""
    begun, wait = tmp_path / "begun", gpu_tests.wait

    def until_the_last(running, end):
        while not begun.exists() and running[0].poll() is None:
            time.sleep(0.05)
        return wait(running, time.monotonic())

    monkeypatch.setenv("BEGUN", str(begun))
    monkeypatch.setattr(gpu_tests, "GRACE", 120.0)
    monkeypatch.setattr(gpu_tests, "wait", until_the_last)
    (few / "test_few.py").write_text(FILE.replace("number != 4", "True"))
    code, root = run(few, "--processes", "1", "--seconds", "12")
    assert code == CUT
    found = {case.get("name") for case in root.iter("testcase")}
    assert found - {"test_last"} == {f"test_one[{number}]" for number in range(9)}
    assert "stopped after 12 s" in capsys.readouterr().out


def test_a_process_that_leaves_no_file_is_an_error(tmp_path):
    case = "<testcase classname='{}' name='{}'>{}</testcase>"
    cases = [case.format("file", "one", ""), case.format("file", "two", "<skipped/>"), case.format("", "file", "")]
    (tmp_path / "1.xml").write_text(f"<testsuites><testsuite>{''.join(cases)}</testsuite></testsuites>")
    (tmp_path / "2.xml").write_text("<testsuites><tests")
    root = gpu_tests.merged([tmp_path / f"{number}.xml" for number in (1, 2, 3)])
    assert gpu_tests.counts(root) == {"tests": 5, "errors": 2, "failures": 0, "skipped": 1}


def test_a_process_that_does_not_answer_is_killed(monkeypatch):
    monkeypatch.setattr(gpu_tests, "GRACE", 0.5)
    script = "import signal, time; signal.signal(signal.SIGINT, signal.SIG_IGN); print(flush=True); time.sleep(600)"
    process = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE)
    process.stdout.readline()
    assert gpu_tests.wait([process], time.monotonic() + 0.1)
    assert process.returncode == -9
