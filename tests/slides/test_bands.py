"""Which windows are run, how a wide slide is cut, and what is kept of a band."""

from pathlib import Path

import numpy as np
import pytest

from mpamatch.errors import InputError
from mpamatch.slides.bands import Band, Block, Layout, Rows, Seen, Store, lay_out
from mpamatch.slides.tissue import Tissue

WINDOW = 32


def layout(width: int, height: int, budget: int, stride: int = 20) -> Layout:
    lefts, tops = range(0, width - WINDOW + 1, stride), range(0, height - WINDOW + 1, stride)
    return lay_out((width, height), WINDOW, list(tops), list(lefts), 3, budget)


def seen(width: int, height: int, marked: tuple[slice, slice] | None = None, scale: float = 1.0) -> Seen:
    mask = np.zeros((-(-height // 8), -(-width // 8)), dtype=bool)
    mask[marked or np.s_[:, :]] = True
    return Seen(Tissue(mask, 8.0, 8.0), (width, height), scale)


@pytest.mark.parametrize("scale", [1.0, 2.0, 0.7])
def test_a_window_is_run_if_a_pixel_of_it_is_looked_at(scale: float) -> None:
    width, height = 90, 70
    where = Seen(Tissue(np.random.default_rng(0).random((30, 30)) < 0.02, 8.0, 8.0), (width, height), scale)
    whole = where.pixels(0, height, 0, width)
    assert 0 < whole.mean() < 0.5
    for top in range(-5, height, 7):
        for left in range(-5, width, 9):
            part = whole[max(0, top) : top + 12, max(0, left) : left + 12]
            assert where.touches(top, top + 12, left, left + 12) == part.any()


@pytest.mark.parametrize("budget", [1, 600_000, 900_000, 10**9])
def test_blocks_cover_every_column_once_with_all_windows_that_reach_there(budget: int) -> None:
    plan = layout(412, 112, budget)
    assert len(plan.blocks) > 1 or budget > 900_000
    assert [plan.blocks[0].left, *(block.right for block in plan.blocks)] == [
        *(block.left for block in plan.blocks), 412,
    ]  # fmt: skip
    for block in plan.blocks:
        reaching = [at for at, left in enumerate(plan.lefts) if left + WINDOW > block.left and left < block.right]
        assert reaching == list(range(block.first, block.stop))
    if budget > 1:
        widths = [plan.lefts[one.stop - 1] + WINDOW - plan.lefts[one.first] for one in plan.blocks]
        assert max(widths) * (4 * 3 * WINDOW + 3 * (WINDOW + 1024) + 4096) <= budget


def test_bands_cover_every_row_once_and_know_their_windows() -> None:
    plan = layout(112, 112, 10**9)
    bands = plan.bands(plan.blocks[0], seen(112, 112, np.s_[5:7, 2:3]))  # rows 40 to 55, columns 16 to 23
    assert [(band.top, band.bottom) for band in bands] == [(0, 20), (20, 40), (40, 60), (60, 80), (80, 112)]
    assert [band.lefts for band in bands] == [(), (0, 20), (0, 20), (), ()]


def test_going_on_begins_with_the_first_row_that_reaches_in() -> None:
    plan = layout(112, 132, 10**9, stride=10)
    for row, top in enumerate(plan.tops):
        first = plan.needed_from(row)
        assert plan.tops[first] + WINDOW > top
        assert first == 0 or plan.tops[first - 1] + WINDOW <= top


def test_a_band_is_kept_and_read_back(tmp_path: Path) -> None:
    band = Band(Block(0, 0, 2, 0, 50), 3, 60, 60, 80, (0, 20))
    store = Store(tmp_path)
    label = np.random.default_rng(0).integers(0, 3, (20, 50), dtype=np.uint8)
    assert not store.has(band)
    store.write(band, label, 2 * label)
    assert store.has(band)
    assert all((one == other).all() for one, other in zip(store.read(band), (label, 2 * label), strict=True))
    empty = band._replace(row=4, lefts=())
    assert store.has(empty)
    assert (store.read(empty)[0] == 255).all()
    assert (next(store.rows([[band]])) == label).all()
    file = next(tmp_path.iterdir())
    file.write_bytes(file.read_bytes()[:-5])
    with pytest.raises(InputError, match=r"is broken .*delete it"):
        store.read(band)


def test_rows_of_any_height_become_whole_squares(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mpamatch.slides.bands.PIECE", 16)
    label = np.random.default_rng(0).integers(0, 9, (53, 40), dtype=np.uint8)
    found, places = np.full((53, 140), 99, dtype=np.uint8), []

    def take(part: np.ndarray, confidence: np.ndarray, top: int, left: int) -> None:
        assert (confidence == 2 * part).all()
        places.append((top, left, *part.shape))
        found[top : top + part.shape[0], left : left + part.shape[1]] = part

    rows = Rows(Block(1, 4, 9, 100, 140), 53, take)
    for top, bottom in ((0, 5), (5, 40), (40, 41), (41, 53)):
        rows.add(label[top:bottom], 2 * label[top:bottom])
    assert (found[:, 100:] == label).all()
    assert (found[:, :100] == 99).all()
    assert {(top, left) for top, left, *_ in places} == {
        (top, left) for top in (0, 16, 32, 48) for left in (100, 116, 132)
    }
