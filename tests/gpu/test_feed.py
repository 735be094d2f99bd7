"""The DALI feed on a GPU: the batches that it makes on a CPU, already where the step wants them."""

from dataclasses import replace

import pytest
import torch

pytest.importorskip("nvidia.dali", reason="DALI is not installed (pip install 'mpamatch[dali-cuda13]')")
pytest.importorskip("rich", reason="the data part of the package needs rich")
from mpamatch.data.feeds.dali import DaliFeed
from tests.data.places import SHARED, feed_of, make_places


@pytest.mark.parametrize("augment", ["histology", "natural"])
def test_a_gpu_makes_the_batches_of_a_cpu(augment, tmp_path):
    places = make_places(tmp_path)
    config = replace(SHARED, augment=augment, zoom=[0.7, 1.4], weak_colour=0.5)
    on_cpu = feed_of(places, config, DaliFeed)
    on_gpu = feed_of(places, config, DaliFeed, device=torch.device("cuda", 0))
    for step, batch in enumerate(on_gpu.batches(0, 5)):
        expected = on_cpu[step]
        assert torch.equal(batch.labelled.label.cpu(), expected.labelled.label)
        assert torch.equal(batch.unlabelled.valid.cpu(), expected.unlabelled.valid)
        for name in ("weak", "strong1", "strong2"):
            view = getattr(batch.unlabelled, name)
            assert view.is_cuda
            assert (view.cpu() - getattr(expected.unlabelled, name)).abs().mean() < 1 / 255
        assert (batch.labelled.image.cpu() - expected.labelled.image).abs().mean() < 1 / 255
