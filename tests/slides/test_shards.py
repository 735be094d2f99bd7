"""Shares of a list cover it, each file once, by the path alone."""

from pathlib import Path

import pytest

from mpamatch.errors import InputError
from mpamatch.slides.shards import ALONE, Shard, shard_of

FILES = [Path(f"/data/{number}.svs") for number in range(200)] + [Path("/data/\udcff.svs")]


@pytest.mark.parametrize("count", [1, 2, 7, 300])
def test_every_file_belongs_to_one_share(count: int) -> None:
    owners = [[index for index in range(count) if Shard(index, count).owns(file)] for file in FILES]
    assert {len(those) for those in owners} == {1}
    if count == 7:
        sizes = [sum(one == [index] for one in owners) for index in range(count)]
        assert min(sizes) > 10


def test_a_share_does_not_depend_on_the_list_or_the_folder_one_stands_in(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir("/")
    for file in FILES[:20]:
        assert Shard(1, 3).owns(file) == Shard(1, 3).owns(file.relative_to("/"))


def test_parts_of_a_share_cover_it() -> None:
    whole = Shard(1, 3)
    for file in FILES:
        assert sum(whole.split(index, 4).owns(file) for index in range(4)) in (0, 1)
    every = [Shard(index, 3).split(part, 4) for index in range(3) for part in range(4)]
    assert sorted((one.index, one.count) for one in every) == [(index, 12) for index in range(12)]


@pytest.mark.parametrize(
    ("word", "environment", "expected"),
    [
        (None, {"SLURM_ARRAY_TASK_ID": "1", "SLURM_ARRAY_TASK_COUNT": "2"}, ALONE),
        ("2/8", {}, Shard(1, 8)),
        ("8/8", {}, Shard(7, 8)),
        ("auto", {"SLURM_ARRAY_TASK_ID": "3", "SLURM_ARRAY_TASK_COUNT": "4"}, Shard(3, 4)),
        (
            "auto",
            {"SLURM_ARRAY_TASK_ID": "3", "SLURM_ARRAY_TASK_COUNT": "4", "SLURM_ARRAY_TASK_MIN": "1"},
            Shard(2, 4),
        ),
        ("auto", {"RANK": "0", "WORLD_SIZE": "2"}, Shard(0, 2)),
        (
            "auto",
            {"RANK": "1", "WORLD_SIZE": "2", "SLURM_ARRAY_TASK_ID": "2", "SLURM_ARRAY_TASK_COUNT": "3"},
            Shard(5, 6),
        ),
    ],
)
def test_words(word: str | None, environment: dict[str, str], expected: Shard) -> None:
    assert shard_of(word, environment) == expected


@pytest.mark.parametrize(
    ("word", "environment", "says"),
    [
        ("0/8", {}, "2/8"),
        ("9/8", {}, "2/8"),
        ("two", {}, "auto"),
        ("1/0", {}, "2/8"),
        ("auto", {}, "--shard 1/8"),
        ("auto", {"SLURM_ARRAY_TASK_ID": "7", "SLURM_ARRAY_TASK_COUNT": "4"}, "one by one"),
        ("auto", {"RANK": "x", "WORLD_SIZE": "4"}, "must be numbers"),
    ],
)
def test_words_refused(word: str, environment: dict[str, str], says: str) -> None:
    with pytest.raises(InputError, match=says):
        shard_of(word, environment)
