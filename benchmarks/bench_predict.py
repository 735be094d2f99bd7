"""Prediction against the straightforward loop: tiles and images per second of small_hybrid and of ViT-L.

    python -m mpamatch.benchmarks.bench_predict [--model small,uni] [--device cpu|cuda] [--data ROOT] [--out FILE]

tiles:  one large image, windows overlapping by a third, to probabilities.
images: images of one window each, to labels, in memory.
files:  image files to masks and overlays, as `mpamatch predict` does (with --data, images at least a window large).

`plain` is the loop that people write: one window after another, softmax, a sum of weighted windows over a sum of
weights. `model` is the network alone on full batches, one after another with all of torch's threads. Weights are
random. Before anything is timed each variant's probabilities are compared with plain's; one that differs or does not
run becomes a row that says why. The variants take turns.
"""

import argparse
import json
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional

from mpamatch.benchmarks import measure, rows
from mpamatch.benchmarks.command import run_main
from mpamatch.benchmarks.measure import Timed, Timing
from mpamatch.benchmarks.pretend import pretended
from mpamatch.errors import InputError, unknown
from mpamatch.images import Colour, overlay, read_image
from mpamatch.inference.segmenter import Segmenter, precision_on, scaled, to_predict
from mpamatch.inference.settings import SegmenterSettings
from mpamatch.inference.tiles import most_probable, origins
from mpamatch.models.build import build_model
from mpamatch.models.encoders.preset import IMAGENET
from mpamatch.models.network import Network
from mpamatch.models.transunet import TransUNet, TransUNetConfig

PLAIN, OURS, ALONE = "plain", "mpamatch", "model"
TOLERANCE = {"32": 1e-4, "bf16": 0.1}  # of probabilities
CLASSES: dict[str, Colour] = {"background": (0, 0, 0), "gland": (0, 200, 83)}
SHARPER = 4.0  # random logits have a deviation of .2 to .3: a trained network's spread over more of 0 to 1


@dataclass(frozen=True)
class Model:
    """A network, its window and scale, how many windows one side of the large image has, how many images are read."""

    config: TransUNetConfig
    window: int
    scale: float
    windows: int
    images: int


MODELS = {
    "small": Model(
        TransUNetConfig(encoder="small_hybrid", decoder_width=96, decoder_channels=[64, 32, 16, 8], norm="group"),
        window=112, scale=0.5, windows=4, images=16,
    ),
    "uni": Model(TransUNetConfig(encoder="uni"), window=256, scale=1.0, windows=2, images=4),
}  # fmt: skip


@dataclass
class PredictRow:
    """One variant at one work, or the reason why there is none (`rate` None and `note`).

    `count` tiles or images are predicted in `median` seconds; `difference` is the largest of a probability from
    plain's, `labels_differ` the share of pixels with another label; `over_plain` the rate over plain's.
    """

    predict: str  # tiles, images or files
    model: str
    variant: str
    count: int
    window: int
    rate: float | None = None
    median: float | None = None
    p20: float | None = None
    p80: float | None = None
    rounds: int = 0
    over_plain: float | None = None
    difference: float | None = None
    labels_differ: float | None = None
    note: str = ""
    device: str = ""
    machine: str = ""
    torch: str = ""
    load: float | None = None
    pretend: bool = field(default_factory=pretended)


# The two ways to predict.


class Plain:
    """The straightforward loop; it takes its numbers from a segmenter."""

    def __init__(self, model: nn.Module, segmenter: Segmenter):
        self.model, self.segmenter = model, segmenter

    @torch.no_grad()
    def probabilities(
        self,
        image: np.ndarray,  # (H, W, 3) u8, at least a window large after scaling
    ) -> Tensor:  # (C, H, W) f32
        of = self.segmenter.settings
        window, device, size = of.window, self.segmenter.device, scaled(image.shape[:2], of.scale)
        if min(size) < window:
            raise InputError(f"bench_predict: an image of {size} scaled pixels is smaller than the window of {window}.")
        x = torch.from_numpy(image).permute(2, 0, 1)[None]
        x = functional.interpolate(x, size=size, mode="bilinear", antialias=True).float() / 255
        x = ((x - torch.tensor(of.mean)[:, None, None]) / torch.tensor(of.std)[:, None, None]).to(device)
        wave = torch.sin(torch.pi * (torch.arange(window, device=device) + 0.5) / window).square()
        weight = wave[:, None] * wave
        total, weights = torch.zeros(len(of.class_names), *size, device=device), torch.zeros(size, device=device)
        for top in origins(size[0], window, int(window * (1 - of.overlap))):
            for left in origins(size[1], window, int(window * (1 - of.overlap))):
                place = (slice(top, top + window), slice(left, left + window))
                probability = self.model(x[:, :, *place]).logits.softmax(1)[0]
                total[:, *place] += probability * weight
                weights[place] += weight
        return functional.interpolate((total / weights)[None], size=image.shape[:2], mode="bilinear")[0]

    def labels(self, images: Iterable[np.ndarray]) -> Iterator[np.ndarray]:
        for image in images:
            yield self.probabilities(image).argmax(0).to(torch.uint8).cpu().numpy()

    def write(self, files: Sequence[Path], out: Path) -> None:
        """Masks and overlays, one image after another."""
        for folder in ("masks", "overlays"):
            (out / folder).mkdir(parents=True)
        for file in files:
            image = read_image(file)
            label = next(self.labels([image]))
            Image.fromarray(label).save(out / "masks" / f"{file.stem}.png")
            Image.fromarray(overlay(image, label, self.segmenter.settings.colours)).save(
                out / "overlays" / f"{file.stem}.png"
            )


class Ours:
    """What `mpamatch predict` does."""

    def __init__(self, segmenter: Segmenter):
        self.segmenter = segmenter

    def probabilities(self, image: np.ndarray) -> Tensor:
        return self.segmenter.probabilities(image)

    def labels(self, images: Iterable[np.ndarray]) -> Iterator[np.ndarray]:
        return (label.cpu().numpy() for label in self.segmenter.labels(images))

    def write(self, files: Sequence[Path], out: Path) -> None:
        from mpamatch.inference.files import predict_files  # its progress bar needs rich, which a GPU machine may lack

        predict_files(self.segmenter, files, out)


Way = Plain | Ours


def ways(model: Model, device: str) -> dict[str, Way]:
    """By name, all with the same weights."""
    plain = random_network(model).to(device)
    ours = to_predict(random_network(model), torch.device(device))
    compiled: list[Any] = [torch.compile(network) for network in (plain, ours)]
    return {
        PLAIN: Plain(plain, segmenter_of(model, plain)),
        f"{PLAIN}-compiled": Plain(compiled[0], segmenter_of(model, plain)),
        OURS: Ours(segmenter_of(model, ours)),
        f"{OURS}-compiled": Ours(segmenter_of(model, compiled[1])),
        f"{OURS}-bf16": Ours(segmenter_of(model, ours, "bf16")),
    }


def random_network(model: Model) -> Network:
    torch.manual_seed(0)
    network = build_model(model.config, len(CLASSES)).eval()
    assert isinstance(network, TransUNet)
    with torch.no_grad():
        network.decoder.head.weight.mul_(SHARPER)
    return network


def segmenter_of(model: Model, network: nn.Module, precision: str = "32") -> Segmenter:
    settings = SegmenterSettings(
        class_names=tuple(CLASSES), colours=tuple(CLASSES.values()), mean=IMAGENET[0], std=IMAGENET[1],
        window=model.window, scale=model.scale, microns_per_pixel=None, precision=precision,
    )  # fmt: skip
    return Segmenter(network, settings)


def tissue(side: int, number: int) -> np.ndarray:  # (side, side, 3) u8
    """Noise of several grains, different for each number."""
    generator = torch.Generator().manual_seed(number)
    grains = [torch.rand(1, 3, *[-(-side // grain)] * 2, generator=generator) for grain in (64, 16, 4, 1)]
    mixed = torch.cat([functional.interpolate(grain, size=(side, side), mode="bilinear") for grain in grains]).mean(0)
    return (255 * mixed).to(torch.uint8).permute(1, 2, 0).contiguous().numpy()


# Comparison and timing.


def differences(
    ours: Tensor,  # (C, H, W)
    plain: Tensor,
    precision: str,
) -> tuple[float, float, str]:
    """The largest difference of a probability, the share of other labels, and what is wrong, if anything.

    Within the tolerance a label is another one only where plain's two best are tied to twice that.
    """
    if ours.shape != plain.shape:
        return 1.0, 1.0, f"values differ: shape {tuple(ours.shape)}, not {tuple(plain.shape)}"
    largest, tolerance = float((ours - plain).abs().max()), TOLERANCE[precision]
    share = float((most_probable(ours) != most_probable(plain)).float().mean())
    if not largest <= tolerance:
        return largest, share, f"values differ: a probability by {largest:.1e}, allowed {tolerance:.0e}"
    return largest, share, ""


def compare(name: str, model: Model, wanted: argparse.Namespace) -> Iterator[list[PredictRow]]:
    """The rows of one model, work by work."""
    made = choose(ways(model, wanted.device), wanted.variants)
    across = model.window + (model.windows - 1) * int(2 / 3 * model.window)
    large = tissue(round(across / model.scale), 0)
    blank = PredictRow(
        "", name, "", 0, model.window, device=wanted.device, machine=measure.machine(wanted.device),
        torch=torch.__version__, load=measure.load(),
    )  # fmt: skip
    expected = made[PLAIN].probabilities(large)
    checked = {variant: check(way, large, expected, replace(blank, variant=variant)) for variant, way in made.items()}
    running = {variant: made[variant] for variant, row in checked.items() if not row.note}
    for work in works(model, running, large, wanted):
        times = measure.interleaved(work.calls, seconds=wanted.seconds, rounds=(3, 25), warm_up=1)
        of_work = []
        for variant in [*checked, *(name for name in work.calls if name not in checked)]:
            row = replace(checked.get(variant, replace(blank, variant=variant)), predict=work.name, count=work.items)
            of_work.append(timed_row(row, times[variant], times[PLAIN]) if variant in times else row)
        yield of_work


def choose(made: dict[str, Way], variants: str | None) -> dict[str, Way]:
    """Plain and those that are named; all where none is. Raises InputError for an unknown one."""
    if variants is None:
        return made
    names = [PLAIN, *variants.split(",")]
    for name in names:
        if name not in made:
            raise unknown("variant", name, made)
    return {name: way for name, way in made.items() if name in names}


def check(way: Way, image: np.ndarray, expected: Tensor, row: PredictRow) -> PredictRow:
    """The row with how far its values are from plain's; a note where that is too far, or it does not run."""
    if precision_on(way.segmenter.device, way.segmenter.settings.precision) != way.segmenter.settings.precision:
        return replace(row, note="this processor only imitates bfloat16, so `mpamatch predict` takes float32")
    try:
        largest, share, wrong = differences(way.probabilities(image), expected, way.segmenter.settings.precision)
    except Exception as error:  # a variant that fails becomes a row that says so
        return replace(row, note=f"cannot run: {' '.join(str(error).split())[:120] or type(error).__name__}")
    return replace(row, difference=largest, labels_differ=share, note=wrong)


class Work(NamedTuple):
    """So many tiles or images, and each variant's call."""

    name: str
    items: int
    calls: dict[str, Timed]


def works(model: Model, running: Mapping[str, Way], large: np.ndarray, wanted: argparse.Namespace) -> Iterator[Work]:
    tiles = {variant: Timed(partial(_to_the_end, way, large)) for variant, way in running.items()}
    alone = Timed(_alone(model, running.get(OURS, running[PLAIN]).segmenter))
    yield Work("tiles", model.windows**2, tiles | {ALONE: alone})
    images = [
        tissue(round(model.window / model.scale), number) for number in range(1, (wanted.images or model.images) + 1)
    ]
    labels = {variant: Timed(partial(_all_labels, way, images)) for variant, way in running.items()}
    yield Work("images", len(images), labels)
    files = files_of(wanted, model)
    if files:
        yield Work("files", len(files), {variant: _written(way, files) for variant, way in running.items()})


def files_of(wanted: argparse.Namespace, model: Model) -> list[Path]:
    """The first images of the prepared folder that are at least a window large; none without a folder."""
    if wanted.data is None:
        return []
    if not (wanted.data / "images").is_dir():
        raise InputError(f"{wanted.data}: is no prepared folder (it has no images).")
    found = []
    for file in sorted((wanted.data / "images").iterdir()):
        with Image.open(file) as image:
            size = scaled((image.height, image.width), model.scale)
        if min(size) >= model.window:
            found.append(file)
        if len(found) == (wanted.images or model.images):
            break
    return found


def _to_the_end(way: Way, image: np.ndarray) -> None:
    if way.probabilities(image).is_cuda:
        torch.cuda.synchronize()


def _all_labels(way: Way, images: Sequence[np.ndarray]) -> None:
    for _ in way.labels(images):
        pass


def _written(way: Way, files: Sequence[Path]) -> Timed:
    """Into a folder that is made before and removed after, both untimed."""
    folders: list[Path] = []

    @contextmanager
    def folder() -> Iterator[None]:
        with tempfile.TemporaryDirectory() as made:
            folders.append(Path(made))
            yield

    return Timed(lambda: way.write(files, folders[-1]), folder)


def _alone(model: Model, of: Segmenter) -> Callable[[], None]:
    """The network on as many windows as the large image has, all there already, in full batches."""
    generator = torch.Generator().manual_seed(0)
    windows = torch.randn(model.windows**2, 3, model.window, model.window, generator=generator).to(of.device)

    @torch.inference_mode()
    def run() -> None:
        for batch in windows.split(of.settings.batch):
            of.model(batch)
        if windows.is_cuda:
            torch.cuda.synchronize()

    return run


def timed_row(row: PredictRow, timing: Timing, plain: Timing) -> PredictRow:
    rates = {"rate": row.count / timing.median, "over_plain": plain.median / timing.median}
    return replace(row, **rates, median=timing.median, p20=timing.p20, p80=timing.p80, rounds=timing.rounds)


def write(path: Path, found: Sequence[PredictRow]) -> None:
    """Adds the rows to the JSON lines of `path`, in place of older ones of the same key; other lines stay."""
    before = path.read_text(encoding="utf-8").splitlines() if path.is_file() else []
    fresh = {_key(asdict(row)) for row in found}
    kept = [line for line in before if not line.startswith(rows.PREDICT) or _key(json.loads(line)) not in fresh]
    rows.write_lines(path, [*kept, *(json.dumps(asdict(row)) for row in found)])


def _key(row: Mapping[str, Any]) -> tuple[object, ...]:
    return tuple(row[name] for name in ("predict", "model", "variant", "machine"))


# The command.

HEADER = ("work", "model", "variant", "per s", "ms each", "p20–p80", "over plain", "differs by", "other labels", "note")


def cells(row: PredictRow) -> list[str]:
    start = [row.predict, row.model, row.variant]
    if row.rate is None or row.median is None or row.p20 is None or row.p80 is None:
        return [*start, "–", "", "", "", "", "", row.note]
    each = [rows.milliseconds(seconds / row.count) for seconds in (row.median, row.p20, row.p80)]
    differs = "–" if row.difference is None else f"{row.difference:.1e}"
    labels = "–" if row.labels_differ is None else f"{100 * row.labels_differ:.3f} %"
    spread = f"{each[1]}–{each[2]}"
    return [*start, f"{row.rate:.2f}", each[0], spread, f"{row.over_plain:.2f}", differs, labels, row.note]


def main(words: list[str] | None = None) -> int:
    """Returns 0, or 1 where a variant's values differ from plain's."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default=",".join(MODELS), help="small, uni, or both with a comma (both)")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--data", type=Path, help="a prepared folder, for the work `files`")
    parser.add_argument("--images", type=int, help="how many images are predicted together (small 16, uni 4)")
    parser.add_argument("--seconds", type=float, default=30.0, help="for the turns of one work, three at least (30)")
    parser.add_argument("--variants", help=f"by name, with commas; {PLAIN} is always there (all)")
    parser.add_argument("--out", type=Path, help="JSON lines to write into")
    wanted = parser.parse_args(words)
    names, found = wanted.model.split(","), []
    for name in names:
        if name not in MODELS:
            raise unknown("model", name, MODELS)
    for of_work in chain.from_iterable(compare(name, MODELS[name], wanted) for name in names):
        if wanted.out:
            write(wanted.out, of_work)  # at once: a run that is stopped keeps what it has
        found += of_work
        print(f"{of_work[0].model} {of_work[0].predict}: measured", flush=True)
    rows.show("prediction", HEADER, [cells(row) for row in found], text_columns=3)
    return 1 if any(row.note.startswith("values differ") for row in found) else 0


if __name__ == "__main__":
    run_main(main)
