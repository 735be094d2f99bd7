"""Layers that encoders, decoders and methods share: groups of a norm, whole channels dropped."""

import pytest
import torch

from mpamatch.models.layers import ChannelDropout, conv_norm


@pytest.mark.parametrize(("width", "groups"), [(16, 8), (12, 4), (6, 2), (7, 1)])
def test_group_norm_takes_the_most_groups_that_divide(width, groups):
    block = conv_norm(3, width, "group")
    assert block[1].num_groups == groups
    assert block(torch.rand(2, 3, 8, 8)).shape == (2, width, 8, 8)


def test_channel_dropout_drops_whole_channels_by_its_noise():
    maps = (torch.rand(2, 3, 4, 4) + 1, torch.rand(2, 2, 2, 2) + 1)
    noise = torch.tensor([[0.1, 0.5, 0.9, 0.49, 0.51], [0.9, 0.9, 0.1, 0.9, 0.1]])
    dropped = ChannelDropout((3, 2), 0.5)(maps, noise)
    keep = torch.tensor([[0.0, 2.0, 2.0, 0.0, 2.0], [2.0, 2.0, 0.0, 2.0, 0.0]])  # kept at noise >= p
    assert torch.equal(dropped[0], maps[0] * keep[:, :3, None, None])
    assert torch.equal(dropped[1], maps[1] * keep[:, 3:, None, None])


@pytest.mark.parametrize("p", [0.25, 0.5])
def test_channel_dropout_keeps_the_expectation(p):
    noise = torch.rand(4000, 3, generator=torch.Generator().manual_seed(0))
    (dropped,) = ChannelDropout((3,), p)((torch.ones(4000, 3, 1, 1),), noise)
    assert dropped.mean().item() == pytest.approx(1, abs=4 * (p / (1 - p) / 12000) ** 0.5)
    assert (dropped == 0).float().mean().item() == pytest.approx(p, abs=0.02)


def test_channel_dropout_keeps_the_dtype_of_the_maps():
    (dropped,) = ChannelDropout((2,), 0.5)((torch.ones(1, 2, 2, 2, dtype=torch.bfloat16),), torch.tensor([[0.2, 0.8]]))
    assert dropped.dtype == torch.bfloat16
