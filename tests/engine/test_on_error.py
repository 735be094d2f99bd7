"""A run whose images break: stopped by name, or through to the end with the skipped ones told."""

import io
from dataclasses import replace

import pytest
from rich.console import Console

from mpamatch.commands.train import report
from mpamatch.data.prepared import training_lists
from mpamatch.engine.loop import train
from mpamatch.errors import InputError
from tests.tiny import SPLIT, make_set, silent, tiny_config
from tests.tools.feeds import NEEDS_DALI

pytestmark = pytest.mark.slow

FEEDS = [
    {"data.feed": "torchvision", "data.workers": 0},
    {"data.feed": "torchvision", "data.workers": 1},
    pytest.param({"data.feed": "dali"}, marks=NEEDS_DALI),
]


@pytest.fixture(scope="module")
def broken(tmp_path_factory):
    """A set of whose images one in three is cut short, and their names."""
    prepared = make_set(tmp_path_factory.mktemp("set") / "tissue")
    labelled, unlabelled = training_lists(prepared, SPLIT)
    names = [labelled[0], *unlabelled[::3]]
    for name in names:
        path = prepared.image_path(name)
        path.write_bytes(path.read_bytes()[:1000])
    return prepared.root, sorted(names)


@pytest.mark.parametrize("fields", FEEDS, ids=lambda fields: f"{fields['data.feed']}{fields.get('data.workers', '')}")
def test_a_run_stops_at_a_broken_image_or_skips_it_and_says_so(fields, broken, tmp_path):
    root, names = broken
    config = tiny_config(root, "fixmatch", {**fields, "engine.steps": 8})
    with pytest.raises(InputError, match=r"images/.*cannot be decoded"):
        train(config, tmp_path / "stopped", console=silent())
    config = replace(config, data=replace(config.data, on_error="skip"))
    result = train(config, tmp_path / "run", console=silent())
    assert sorted(result.skipped) == names
    said = io.StringIO()
    report(result, Console(file=said, width=500))
    assert f"images skipped because they could not be used: {len(names)} ({names[0]}, {names[1]}" in said.getvalue()
    assert f"{names[0]}: cannot be decoded" in said.getvalue()
