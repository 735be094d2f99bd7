"""Made-up tissue as a kind of data set; tests/data/test_synthetic.py looks at the tissue itself."""

from pathlib import Path

import pytest

from mpamatch.commands import prepare
from mpamatch.data.prepared import load_prepared
from mpamatch.data.sources import synthetic
from mpamatch.errors import InputError
from tests.data.raw import arguments

CLASSES = {"background", "gland"}


def prepare_words(_: Path, data: Path) -> list[str]:
    return ["synthetic", str(data), "--images", "24", "--size", "48"]


def test_synthetic_is_written_and_repeats(tmp_path, capsys):
    for name in ("one", "two"):
        prepare.run(arguments(kind="synthetic", dest=tmp_path / name, images=12, size=48, seed=3))
    assert "mpamatch split" in capsys.readouterr().out
    one, two = (load_prepared(tmp_path / name) for name in ("one", "two"))
    assert one.parts == two.parts
    assert len(set(one.groups.values())) == 3
    for name in one.groups:
        assert one.image_path(name).read_bytes() == two.image_path(name).read_bytes()
    for options in ({"images": 3}, {"size": 8}, {"seed": -1}):
        with pytest.raises(InputError, match=f"--{next(iter(options))}"):
            synthetic.raw_set(**options)
