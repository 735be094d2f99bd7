"""A training step of each method never waits for a GPU."""

from typing import Any

import pytest
import torch
from torch import Tensor

from mpamatch.batch import Batch
from mpamatch.methods import Method
from mpamatch.methods.mpamatch import MPAMatch
from tests.methods.cases import METHODS, at, batch, method
from tests.tools.nosync import HostSync, assert_no_sync

pytestmark = pytest.mark.slow


def _step(ours: Method, data: Batch, step: Tensor) -> None:
    ours(data, step)["loss"].backward()
    ours.after_step(step)


@pytest.mark.parametrize(("name", "norm"), [(name, "group") for name in METHODS] + [("mean_teacher", "batch")])
def test_no_sync(name: str, norm: str) -> None:
    ours = method(name, norm=norm, dtype=torch.float32, text=name == "mpamatch")
    assert_no_sync(_step, ours, batch(dtype=torch.float32), at(3))


@pytest.mark.parametrize(
    "settings",
    [
        {"second_opinion": "agree", "start": 2, "ramp": 4},
        {"second_opinion": "average"},
        {"assignment": "nearest", "same_class_negatives": False, "unlabelled_loss": "dice"},
        {"image_prototypes": False, "unlabelled_loss": "both"},
        {"weight_head": 0.5, "start": 2, "ramp": 4},
        {
            "second_opinion": "average",
            "opinion_of": ["image", "text", "dropped", "student", "mirror"],
            "teacher": True,
            "start": 2,
        },
    ],
    ids=str,
)
def test_no_sync_in_any_branch_of_mpamatch(settings: dict[str, Any]) -> None:
    ours = method("mpamatch", dtype=torch.float32, text=True, **settings)
    assert_no_sync(_step, ours, batch(3, dtype=torch.float32), at(3))


def test_no_sync_with_own_pixels_of_raw_prototypes() -> None:
    settings = {"diversity_pixels": "own", "diversity_prototypes": "raw", "model": {"prototype_width": 128}}
    ours = method("lpd", dtype=torch.float32, **settings)
    assert_no_sync(_step, ours, batch(dtype=torch.float32), at(3))


@pytest.mark.parametrize("name", [name for name in METHODS if name != "lpd"])
def test_no_sync_with_cross_entropy_alone(name: str) -> None:
    ours = method(name, dtype=torch.float32, labelled_loss="ce")
    assert_no_sync(_step, ours, batch(dtype=torch.float32), at(3))


@pytest.mark.parametrize("name", [name for name in METHODS if name != "lpd"])
def test_no_sync_with_borders(name: str) -> None:
    ours = method(name, dtype=torch.float32, model={"boundary": True})
    assert_no_sync(_step, ours, batch(dtype=torch.float32), at(3))


EVERYTHING = {"align_classes": True, "unlabelled_start": 2, "unlabelled_ramp": 4}


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("fixmatch", {"threshold": "adaptive", "teacher": True, "second_opinion": "agree"}),
        ("unimatch", {"threshold": "corrmatch", "second_opinion": "average"}),
        ("unimatch", {"class_thresholds": True}),
        ("unimatch_v2", {"threshold": "adaptive", "second_opinion": "average"}),
        ("mpamatch", {"threshold": "corrmatch", "teacher": True, "weight_head": 0.5, "second_opinion": "agree"}),
    ],
    ids=str,
)
def test_no_sync_with_the_switches_of_the_pseudo_labels(name: str, settings: dict[str, Any]) -> None:
    ours = method(name, dtype=torch.float32, **EVERYTHING, **settings)
    assert_no_sync(_step, ours, batch(dtype=torch.float32), at(3))


class _Asks(MPAMatch):
    """Updates the bank only if any pixel is confident: a question to the GPU."""

    def _image_terms(self, z: Tensor, label: Tensor, weight: Tensor, correct: Tensor) -> tuple[Tensor, Tensor]:
        if weight.sum() > 0:
            return super()._image_terms(z, label, weight, correct)
        return z.sum(), z.sum()


def test_a_method_that_asks_is_caught() -> None:
    ours = method("mpamatch", dtype=torch.float32)
    ours.__class__ = _Asks
    with pytest.raises(HostSync):
        assert_no_sync(_step, ours, batch(dtype=torch.float32), at(3))
