"""The measurement of what ranks exchange: it counts what the shapes say, and nothing is counted twice or missed."""

import json
from dataclasses import asdict
from typing import Any

import pytest

from mpamatch.benchmarks import bench_ranks
from mpamatch.benchmarks.bench_ranks import RankRow, cells, counted, parameters
from tests.engine.test_ranks import as_torchrun_does
from tests.tiny import make_set, tiny_config
from tests.tools.ranks import run_ranks

pytestmark = pytest.mark.slow

FIELDS = {"model.norm": "group", "data.batch": 4, "data.unlabelled_batch": 4, "engine.steps": 100}


def _measured(rank: int, root: Any) -> dict[str, Any]:
    as_torchrun_does(rank)
    config = tiny_config(root, "mpamatch", FIELDS)
    row = bench_ranks.measured(config, steps=2)
    return {**asdict(row), "numbers": parameters(bench_ranks.Run(config).trainer.method)}


@pytest.fixture(scope="module")
def both(tmp_path_factory):
    return run_ranks(_measured, 2, make_set(tmp_path_factory.mktemp("set") / "tissue").root, timeout=120)


def test_measured_bytes_are_those_of_the_shapes(both):
    """Prototypes: C = 2, K = 2, D = 8, three iterations of Sinkhorn. Losses: one mean of two numbers each for two
    strong views, the feature-dropped one, contrast, alignment, the confident share and the labelled pixels, and the
    3 × 2 sums of its Dice."""
    for row in both:
        assert row["gradients"] == 4 * row["numbers"] > 1000
        assert row["prototypes"] == 4 * 2 * 2 * (3 + 8)
        assert row["losses"] == 4 * (7 * 2 + 3 * 2)
        assert row["calls"] == 3 + 1 + 7 + 1
        assert row["buckets"] >= 1


@pytest.mark.skipif(not bench_ranks.LOOPBACK.is_file(), reason="no counter of the loopback device")
def test_the_wire_carries_what_was_handed_over(both):
    """A ring of two sends everything twice. Small messages cost more headers than content here, so above is open."""
    row = both[0]
    assert row["loopback"] >= 2 * (row["gradients"] + row["prototypes"] + row["losses"])


def test_uni_is_counted_without_its_weights():
    """ViT-L/16 with layer scale; adapters beside the two projections of the attention of each of its 24 blocks."""
    block = (1024 + 1) * 3072 + (1024 + 1) * 1024 + (1024 + 1) * 4096 + (4096 + 1) * 1024 + 2 * 2048 + 2 * 1024
    encoder = (3 * 16 * 16 + 1) * 1024 + (196 + 1 + 1) * 1024 + 24 * block + 2048
    full, lora, frozen = counted(losses=80)
    assert [row.model for row in (full, lora, frozen)] == ["UNI, full", "UNI, LoRA of rank 8", "UNI, frozen"]
    assert full.gradients - frozen.gradients == 4 * encoder
    assert lora.gradients - frozen.gradients == 4 * 24 * (8 * (1024 + 3072) + 8 * (1024 + 1024))
    assert 4 * 5_000_000 < frozen.gradients < 4 * 10_000_000
    assert full.prototypes == 4 * 2 * 10 * (3 + 256)
    assert full.total == full.gradients + full.prototypes + 80


def test_a_row_says_how_much_of_the_ring_was_seen():
    row = RankRow("demo", "measured", 2, 900_000, 2, 90_000, 10_000, 14, 2_100_000.0, 20, "machine", "torch", 0.1)
    assert cells(row)[-2:] == ["2.100", "1.050"]
    assert json.loads(json.dumps(asdict(row)))["loopback"] == 2_100_000.0
