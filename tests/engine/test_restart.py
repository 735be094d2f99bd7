"""torchrun kills and starts its ranks anew: training goes on where it was, and says why it ends only once."""

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch.distributed as dist

from mpamatch import ranks
from mpamatch.engine.loop import choose_run, train
from mpamatch.errors import InputError
from tests.engine.test_ranks import as_torchrun_does
from tests.tiny import assert_same_run, make_set, read_metrics, silent, tiny_config, tiny_flags
from tests.tools.ranks import run_ranks

pytestmark = pytest.mark.slow

GROUP = {"model.norm": "group", "data.batch": 4, "data.unlabelled_batch": 4}
LONG = {**GROUP, "engine.steps": 18, "engine.save_every": 4, "engine.validate_every": 6}


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return make_set(tmp_path_factory.mktemp("set") / "tissue").root


@pytest.fixture(scope="module", autouse=True)
def _warm_ranks(warm_python) -> Iterator[None]:
    """The ranks that torchrun starts are warm; torchrun itself is not."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHON_EXEC", warm_python)
        yield


def torchrun(words: list[str], folder: Path, restarts: int) -> subprocess.Popen:
    """`torchrun -m mpamatch …` with two ranks in `folder`; what they say goes to `folder`/said."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    command += ["--max-restarts", str(restarts), "-m", "--", "mpamatch", *words]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"}
    with (folder / "said").open("w") as said:
        return subprocess.Popen(command, cwd=folder, env=environment, stdout=said, stderr=subprocess.STDOUT)


def train_words(root: Path, fields: Mapping[str, Any]) -> list[str]:
    return ["train", "--recipe", "demo", *tiny_flags(root, "mpamatch", fields)]


def children(process: subprocess.Popen) -> list[int]:
    return [int(word) for word in Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()]


def _undisturbed(rank: int, root: Path, run: Path) -> None:
    as_torchrun_does(rank)
    train(tiny_config(root, "mpamatch", LONG), run, console=silent())


@pytest.mark.skipif(not Path("/proc/self/task").is_dir(), reason="finds the ranks through /proc")
def test_a_killed_rank_costs_nothing_but_the_steps_since_the_checkpoint(root, tmp_path):
    """Two ranks in a numbered folder; the second is killed after five steps, which are after a checkpoint."""
    process = torchrun(train_words(root, LONG), tmp_path, restarts=1)
    run, deadline = tmp_path / "runs" / "demo-001", time.monotonic() + 90
    try:
        while not (run / "metrics.jsonl").is_file() or (run / "metrics.jsonl").read_bytes().count(b"\n") < 6:
            assert process.poll() is None, (tmp_path / "said").read_text()
            assert time.monotonic() < deadline, (tmp_path / "said").read_text()
            time.sleep(0.005)
        os.kill(children(process)[1], signal.SIGKILL)
        run_ranks(_undisturbed, 2, root, tmp_path / "whole", timeout=90)
        assert process.wait(timeout=120) == 0, (tmp_path / "said").read_text()
    finally:
        process.kill()
    said = (tmp_path / "said").read_text()
    assert [path.name for path in (tmp_path / "runs").iterdir()] == ["demo-001"]
    resumed = int(said.partition("resumed at step ")[2].split()[0])
    assert resumed % 4 == 0
    assert 4 <= resumed < 18
    assert_same_run(run, tmp_path / "whole")
    assert [line["step"] for line in read_metrics(run) if "loss" in line] == [*range(1, 19)]


def test_bad_data_on_one_rank_ends_all_with_one_sentence(root, tmp_path):
    """One unlabelled image is cut short, so one rank meets it first. A restart would meet it again: none tries."""
    bad = tmp_path / "bad"
    for part in ("images", "masks", "splits"):
        (bad / part).mkdir(parents=True)
        for file in (root / part).iterdir():
            (bad / part / file.name).write_bytes(file.read_bytes())
    for name in ("dataset.json", "parts.json"):
        (bad / name).write_bytes((root / name).read_bytes())
    cut = sorted(set(prepared_names(bad)))[-1]
    (bad / "images" / cut).write_bytes((bad / "images" / cut).read_bytes()[:200])
    process = torchrun(train_words(bad, {**GROUP, "engine.steps": 40}), tmp_path, restarts=1)
    try:
        assert process.wait(timeout=120) == 1  # torchrun's own: it has no other for ranks that fail
    finally:
        process.kill()
    said = (tmp_path / "said").read_text()
    ours = [line for line in said.splitlines() if line.startswith("mpamatch: ")]
    assert len(ours) == 1
    assert cut in ours[0]
    assert "exitcode  : 2" in said
    assert said.count("Traceback") == 1  # torchrun's own
    assert said.count("labelled and") == 1  # the line that training begins with: the restart did not


def prepared_names(root: Path) -> list[str]:
    from mpamatch.data.prepared import load_prepared, training_lists

    return list(training_lists(load_prepared(root), None)[1])


# The folder


@pytest.fixture
def board(monkeypatch):
    """A store in the place of torchrun's, and no waiting for torchrun to look."""
    store = dist.HashStore()
    monkeypatch.setattr(ranks.time, "sleep", lambda seconds: None)
    monkeypatch.setattr(ranks, "board", lambda: store)
    return store


def test_a_restart_finds_the_folder_it_chose_and_no_other(board, root, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    config = tiny_config(root)
    (tmp_path / "runs" / "demo-001").mkdir(parents=True)  # of an earlier command, whatever is in it
    first = choose_run(None, config)
    assert str(first) == "runs/demo-002"
    assert choose_run(None, config) == first
    assert str(choose_run(None, tiny_config(root, "fixmatch"))) == "runs/demo-003"
    own = tmp_path / "own"
    for _ in range(2):
        assert choose_run(own, config) == own


def test_a_folder_that_was_there_before_is_refused_also_after_a_restart(board, root, tmp_path):
    for _ in range(2):
        with pytest.raises(InputError, match=r"exists already"):
            choose_run(tmp_path, tiny_config(root))


def test_sigterm_saves_once_and_ends_all_ranks(root, tmp_path, monkeypatch):
    monkeypatch.delenv("PYTHON_EXEC")  # a warm rank is not torchrun's own child, which the signal is for
    words = [*train_words(root, {**LONG, "engine.steps": 5000, "engine.save_every": 5000}), "--run", "run"]
    with torchrun(words, tmp_path, restarts=1) as process:
        deadline = time.monotonic() + 120
        while not (tmp_path / "run" / "metrics.jsonl").is_file() or len(read_metrics(tmp_path / "run")) < 3:
            assert process.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.05)
        process.terminate()
        process.wait(timeout=60)
    said = [line for line in (tmp_path / "said").read_text().splitlines() if line.startswith("mpamatch:")]
    assert len(said) == 1
    assert said[0].startswith("mpamatch: terminated; run is saved at step ")
    assert (tmp_path / "run" / "checkpoints" / "last.safetensors").is_file()


# The last sentence


def test_one_rank_speaks_for_all_and_no_restart_tries_again(board, monkeypatch, capsys):
    monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", "1")
    assert not ranks.refused()
    ranks.say_once("first")
    ranks.say_once("second")
    assert capsys.readouterr().err == "first\n"
    assert ranks.refused()
    assert ranks.left_alone(RuntimeError("gloo")) == 1
    assert capsys.readouterr().err == ""


def test_a_rank_waits_until_the_first_has_spoken(board, capsys):
    board.add("refused", 1)  # another rank is about to speak
    waiting = threading.Thread(target=ranks.say_once, args=("second",))
    waiting.start()
    waiting.join(timeout=0.1)
    assert waiting.is_alive()
    board.set("said", "")
    waiting.join(timeout=10)
    assert not waiting.is_alive()
    assert capsys.readouterr().err == ""


def test_a_rank_left_alone_says_so_where_nobody_else_has(board, capsys):
    assert ranks.left_alone(RuntimeError("gloo: closed by peer\nmore")) == 1
    assert ranks.left_alone(RuntimeError("gloo: closed by peer\nmore")) == 1
    assert capsys.readouterr().err == "mpamatch: another rank is gone, so rank 0 ends too (gloo: closed by peer).\n"


# Meeting anew


def test_ranks_meet_at_a_place_of_their_own_among_what_the_dead_have_left(monkeypatch):
    """Three ranks, one after the other as threads; old greetings lie in the store, and one of them was answered."""
    store, who, places = dist.HashStore(), threading.local(), {}
    monkeypatch.setattr(ranks, "started", lambda: 3)
    monkeypatch.setattr(ranks, "rank", lambda: who.rank)
    for key, value in (("hello/1", "dead"), ("hello/2", "dead too"), ("welcome/dead", "grave"), ("grave/1", "")):
        store.set(key, value)

    def meet(rank: int, wait: float) -> None:
        who.rank = rank
        time.sleep(wait)
        places[rank] = (ranks._invite if rank == 0 else ranks._accept)(store, ranks.LONG)

    threads = [threading.Thread(target=meet, args=each, daemon=True) for each in ((0, 0.0), (1, 0.1), (2, 0.2))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=20)
    assert sorted(places) == [0, 1, 2]
    assert len(set(places.values())) == 1
    assert places[0] != "grave"
