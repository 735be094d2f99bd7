"""Every benchmark of an operation, in the order of a training step."""

from mpamatch.benchmarks import (
    bench_prototype_contrast,
    bench_prototype_distance,
    bench_prototype_update_,
    bench_pseudo_label,
    bench_segmentation_loss,
    bench_signed_distance,
    bench_sinkhorn_assign,
)

BENCHMARKS = (
    bench_prototype_distance.BENCHMARK,
    bench_sinkhorn_assign.BENCHMARK,
    bench_prototype_update_.BENCHMARK,
    bench_sinkhorn_assign.WITH_UPDATE,
    bench_prototype_contrast.BENCHMARK,
    bench_segmentation_loss.BENCHMARK,
    bench_pseudo_label.BENCHMARK,
    bench_signed_distance.BENCHMARK,
)
