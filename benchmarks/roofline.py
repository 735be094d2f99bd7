"""A picture of a results file: FLOP/s reached over FLOPs per byte, under the ceilings measured in the same run.

python -m mpamatch.benchmarks.roofline benchmarks/results/NAME.jsonl PICTURE.png
"""

import sys
from itertools import cycle
from pathlib import Path

import matplotlib
import numpy as np
from matplotlib.axes import Axes

from mpamatch.benchmarks.all import BENCHMARKS
from mpamatch.benchmarks.backends import EAGER, FUSED
from mpamatch.benchmarks.rows import Row, read
from mpamatch.files import replacing

matplotlib.use("Agg")
from matplotlib import pyplot as plt

COLOURS = {"cpp": "#0072b2", "triton": "#0072b2", "cuda": "#009e73", EAGER: "#999999", "compile": "#d55e00"}
MARKERS = dict(zip((benchmark.operation for benchmark in BENCHMARKS), cycle("os^DPvX*dhp<>"), strict=False))


def draw(results: Path, picture: Path) -> Path | None:
    """One panel per dtype, of the operation's backends, eager and torch.compile; None where no row has a time.

    Of rows that differ only in their memory the fresh ones are shown, as a training step allocates its outputs.
    """
    rows = [row for row in read(results) if row.median and row.flops and row.backend in COLOURS]
    fresh = {row.case for row in rows if row.allocation == "fresh"}
    rows = [row for row in rows if row.allocation == "fresh" or row.case not in fresh]
    dtypes = sorted({row.dtype for row in rows})
    if not dtypes:
        return None
    figure, axes = plt.subplots(1, len(dtypes), figsize=(9.5 * len(dtypes), 6.4), squeeze=False, layout="constrained")
    for axis, dtype in zip(axes[0], dtypes, strict=True):
        _panel(axis, [row for row in rows if row.dtype == dtype], dtype)
    figure.suptitle(rows[0].machine)
    with replacing(picture) as temporary:
        figure.savefig(temporary, dpi=130, format="png")
    plt.close(figure)
    return picture


def _panel(axis: Axes, rows: list[Row], dtype: str) -> None:
    bandwidth, peak = rows[-1].copy_bytes_per_second, rows[-1].matmul_flops_per_second
    intensities = [row.flops / row.bytes for row in rows]
    reach = np.geomspace(min(intensities) / 2, max(*intensities, peak / bandwidth) * 2, 100)
    axis.loglog(reach, np.minimum(reach * bandwidth, peak) / 1e9, color="black", linewidth=1.5)
    axis.axvline(peak / bandwidth, color="black", linewidth=0.6, linestyle=":")
    for row in rows:
        assert row.median is not None
        ours = row.backend in FUSED
        axis.plot(
            row.flops / row.bytes,
            row.flops / row.median / 1e9,
            MARKERS[row.operation],
            color=COLOURS[row.backend],
            markersize=9 if ours else 6,
            alpha=1.0 if ours else 0.75,
            markeredgecolor="white",
            markeredgewidth=0.6,
        )
    ceilings = f"copy {bandwidth / 1e9:.0f} GB/s, matmul {peak / 1e9:.0f} GFLOP/s"
    axis.set(xlabel="FLOPs per byte (least of both)", ylabel="GFLOP/s", title=f"{dtype}: {ceilings}")
    axis.grid(which="both", linewidth=0.3, alpha=0.5)
    _legend(axis, rows)


def _legend(axis: Axes, rows: list[Row]) -> None:
    """Below the panel, where no point lies: a marker per operation, a colour per backend."""
    operations = [name for name in MARKERS if any(row.operation == name for row in rows)]
    backends = [name for name in COLOURS if any(row.backend == name for row in rows)]
    handles = [axis.plot([], [], MARKERS[name], color="black", label=name)[0] for name in operations]
    handles += [axis.plot([], [], "o", color=COLOURS[name], label=name)[0] for name in backends]
    axis.legend(handles=handles, loc="upper center", bbox_to_anchor=(0.5, -0.12), ncols=4, frameon=False, fontsize=9)


def main(words: list[str]) -> int:
    picture = draw(Path(words[0]), Path(words[1]))
    print(f"drew {picture}" if picture else "no picture: no row has a time")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
