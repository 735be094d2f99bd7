"""A few damaged files of each kind, and the files as they are; tests.reliability.mutated_files runs thousands."""

import mmap
import sys
from random import Random

import pytest

from mpamatch.cli import main
from tests.reliability import children, mutated_files, mutations
from tests.reliability.children import Ended
from tests.reliability.readers import KINDS, copy_world

pytestmark = pytest.mark.slow

COUNT = 12


@pytest.fixture(scope="module")
def made():
    with mutated_files.world() as folders:
        yield folders


@pytest.mark.parametrize("kind", KINDS)
def test_whole_files_are_read(made, kind):
    """Else the commands would end before they read what is damaged."""
    world, folder = made

    def command(reader):
        def whole():
            copy_world(world, folder)
            with reader.during():
                return main([str(word) for word in reader.words(folder)])

        return whole

    readers = KINDS[kind].readers
    for reader, ended in zip(readers, children.run_each(list(map(command, readers)), folder.parent), strict=True):
        assert (ended.code, ended.fault) == (0, None), (reader.name, ended.said[-2000:])


@pytest.mark.parametrize("kind", KINDS)
def test_damaged_files_end_in_a_sentence(made, kind):
    cases = list(mutated_files.run_cases(kind, range(COUNT), *made))
    assert [(case.number, case.ended.fault) for case in cases if case.ended.fault] == []
    assert {case.ended.code for case in cases} & {1, 2}


def test_a_case_is_the_same_each_time(made):
    first, again = (list(mutated_files.run_cases("json", [7, 3], *made)) for _ in range(2))
    assert [case.line()["said"] for case in first] == [case.line()["said"] for case in again]


@pytest.mark.parametrize("kind", KINDS)
def test_damage_is_drawn_by_number(made, kind):
    for reader in KINDS[kind].readers:
        whole, mutate = (made[0] / reader.file).read_bytes(), reader.mutate or KINDS[kind].mutate
        spoilt = [mutate(Random(number), whole) for number in range(40)]
        assert spoilt == [mutate(Random(number), whole) for number in range(40)]
        assert len(set(spoilt)) > 20


@pytest.mark.parametrize(
    ("function", "fault"),
    [
        (lambda: 1 / 0, "traceback: ZeroDivisionError"),
        (lambda: 3, "exit code 3"),
        (lambda: __import__("os").abort(), "ended by SIGABRT"),
        (lambda: __import__("time").sleep(60), "ran longer than"),
        (lambda: sum(number for number in iter(int, 1)), "ran longer than"),
        (lambda: len(bytearray(9 << 30)) and 0, "traceback: MemoryError"),
        (lambda: print("mpamatch: memory ran out (a): b.", file=sys.stderr) or 2, "memory ran out"),
        (lambda: 2, "0 sentences"),
        (lambda: main(["check", "x" * 3000]), "a sentence of"),
        (lambda: main(["check", "nowhere"]), None),
    ],
)
def test_faults_are_seen(tmp_path, function, fault):
    after = [function, lambda: main(["check", "nowhere"])]  # the next one has a child of its own if the first dies
    first, second = children.run_each(after, tmp_path, seconds=0.5)
    assert str(first.fault).startswith(str(fault))
    assert second.fault is None


def test_memory_is_measured_of_each(tmp_path):
    def touch() -> None:  # pages of its own: what a large process has freed would be given to bytes
        with mmap.mmap(-1, 200 << 20) as pages:
            pages[:: mmap.PAGESIZE] = bytes(len(pages) // mmap.PAGESIZE)
            print(len(pages))

    functions = [touch, lambda: print("none")]
    much, little = children.run_each([lambda f=f: f() or 0 for f in functions], tmp_path)
    assert 150 << 20 < much.peak - much.held < 250 << 20
    assert little.peak - little.held < 50 << 20
    assert (much.fault, little.fault) == (None, None)
    assert Ended(0, "said", "", 1.0, 3 << 30).fault == "used 3072 MB"


def test_the_table():
    ended = Ended(2, "mpamatch: no.", "mpamatch: no.", 0.25, 300 << 20)
    case = mutated_files.Case("png", 3, KINDS["png"].readers[0], ended)
    bad = mutated_files.Case("png", 4, KINDS["png"].readers[0], Ended(-11, "", "", 1.0, 400 << 20))
    assert mutated_files.table([case.line(), bad.line()]).splitlines()[2] == "| png | 2 | 1 | 0 | 1.0 | 400 | 1 |"
    assert mutations.png_of(mutations.png_chunks(mutations.png_of([(b"IEND", b"")]))).endswith(b"\xaeB`\x82")
