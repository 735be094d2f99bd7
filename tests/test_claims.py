"""Two commands that start in the same moment never share a folder."""

import json
import subprocess
import threading
from dataclasses import replace
from pathlib import Path

import pytest

from mpamatch.claims import LOCK, alone, claim, claim_numbered
from mpamatch.cli import main
from mpamatch.data.prepared import write_prepared
from mpamatch.data.sources.synthetic import raw_set
from mpamatch.engine.loop import resume
from mpamatch.errors import InputError
from mpamatch.inference.record import Record
from tests.locks import held_by_another
from tests.tiny import make_set, silent, tiny_config, tiny_flags, train_until


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return make_set(tmp_path_factory.mktemp("set") / "tissue").root


def test_a_folder_is_claimed_once(tmp_path):
    assert claim(tmp_path / "a" / "run") == tmp_path / "a" / "run"
    with pytest.raises(InputError, match=r"run: exists already; take another\.$"):
        claim(tmp_path / "a" / "run", "take another")


def test_many_threads_get_folders_of_their_own(tmp_path):
    found: list[Path] = []
    start = threading.Barrier(8)

    def begin() -> None:
        start.wait()
        found.append(claim_numbered(tmp_path / "runs", "demo"))

    threads = [threading.Thread(target=begin) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(path.name for path in found) == [f"demo-{number:03d}" for number in range(1, 9)]


def test_a_folder_that_cannot_be_made_is_a_sentence(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match="cannot be made"):
        claim_numbered(tmp_path / "file", "demo")


def test_a_lock_is_of_one_process_and_goes_with_it(tmp_path):
    path = tmp_path / "new" / LOCK
    with held_by_another(path) as other:
        with pytest.raises(InputError, match=r"^taken$"), alone(path, "taken"):
            pass
        other.kill()
        other.wait()
        assert path.exists()  # what a kill leaves is no obstacle
        with alone(path, "taken"):
            pass
    assert not path.exists()


def test_a_lock_that_is_free_soon_is_waited_for(tmp_path):
    path = tmp_path / LOCK
    with held_by_another(path) as other:
        threading.Timer(0.3, other.kill).start()
        with alone(path, "taken", patience=30):
            pass


@pytest.mark.slow
def test_two_trainings_in_one_moment_have_a_folder_each(root, warm_python, tmp_path):
    words = ["-m", "mpamatch", "train", "--recipe", "demo", *tiny_flags(root, "fixmatch", {})]
    seeds = (0, 1)
    both = [
        subprocess.Popen([warm_python, *words, "--engine.seed", str(seed)], cwd=tmp_path, stdout=subprocess.DEVNULL)
        for seed in seeds
    ]
    assert [one.wait() for one in both] == [0, 0]
    runs = sorted((tmp_path / "runs").iterdir())
    assert [run.name for run in runs] == ["demo-001", "demo-002"]
    texts = ["".join((run / "config.yaml").read_text().split()) for run in runs]
    assert {seed for seed in seeds for text in texts if f"seed:{seed}" in text} == set(seeds)
    for run in runs:
        assert {path.name for path in (run / "checkpoints").iterdir()} == {"best.safetensors", "last.safetensors"}


def test_a_run_is_not_resumed_twice_at_a_time(root, tmp_path):
    run = tmp_path / "run"
    train_until(1, tiny_config(root, "fixmatch"), run)
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    with held_by_another(run / LOCK):
        with pytest.raises(InputError, match="run: another process is training this run; wait for it or end it"):
            resume(run, console=silent())
        after = {path: path.read_bytes() for path in run.rglob("*") if path.is_file() and path.name != LOCK}
        assert after == before
    resume(run, console=silent())


def test_a_training_that_cannot_begin_leaves_no_folder(root, tmp_path, capsys):
    run = tmp_path / "runs" / "one"
    flags = tiny_flags(root, "fixmatch", {"engine.accumulate": 2, "data.batch": 3})
    assert main(["train", "--recipe", "demo", "--run", str(run), *flags]) == 2
    assert "data.batch: 3 images do not divide" in capsys.readouterr().err
    assert not run.exists()


def test_prepare_is_told_that_another_command_made_its_folder(tmp_path):
    dest = tmp_path / "set"
    raw = raw_set(images=12, size=32)

    def items():
        yield from raw.items
        dest.mkdir()
        (dest / "theirs").touch()

    with pytest.raises(InputError, match=f"^{dest}: another command made it meanwhile: choose another folder.$"):
        write_prepared(dest, replace(raw, items=items()))
    assert [path.name for path in tmp_path.iterdir()] == ["set"]
    assert [path.name for path in dest.iterdir()] == ["theirs"]


def test_two_predictions_are_never_mixed(tmp_path):
    made, other = {"weights": "a"}, {"weights": "b"}
    files = [tmp_path / "x" / "one.png", tmp_path / "y" / "one.png"]
    path = tmp_path / "out" / "images.json"
    first, same, differs = Record(path, made, files), Record(path, made, files), Record(path, other, files)
    elsewhere = Record(path, made, files[1:])  # the name "one" would mean another file there
    first.write()
    same.write()
    with pytest.raises(InputError, match=r"was begun with other weights \(a, not b\)"):
        differs.write()
    with pytest.raises(InputError, match="another command writes there"):
        elsewhere.write()
    assert json.loads(path.read_text())["names"] == {"one": str(files[0]), "y-one": str(files[1])}
    assert [file.name for file in path.parent.iterdir()] == ["images.json"]
