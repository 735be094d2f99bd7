"""Do LPD's prototypes stay diverse? Two runs of the same seed, with L_div and without, measured on the validation part.

    python -m experiments.lpd_diversity DATA OUT --steps 150 --start 0

DATA is a prepared set with image-level labels. Runs that are in OUT are not trained again.
"""

import argparse
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor

from mpamatch.benchmarks.command import run_main
from mpamatch.data.prepared import Prepared, load_prepared
from mpamatch.engine.config import load_config
from mpamatch.engine.evaluation import evaluate_run
from mpamatch.engine.loop import train
from mpamatch.images import read_image
from mpamatch.inference.checkpoint import load_segmenter
from mpamatch.inference.segmenter import Segmenter, evaluating, prepare_image
from mpamatch.methods.lpd import LPDConfig, diversity_loss
from mpamatch.models.prototype_maps import MapDecoder, PrototypeMaps
from mpamatch.models.prototypes import mean_cosines

ROWS = {
    "exp(−J)": "mean exp(−J) of L_div; 1: the maps of a class are one map",
    "map correlation": "mean Pearson correlation of two maps of a class, deepest scale",
    "prototype cosine": "mean cosine of two prototypes of a class",
    "projected cosine": "the same after the MLP of the deepest scale",
    "mDice": "of the validation part, from the image alone",
    "mIoU": "the same",
    "mIoU, told": "told the image's label",
}


def main(words: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--recipe", default="ebhi-seg-weak")
    parser.add_argument("--steps", type=int, default=150)
    parser.add_argument("--start", type=int, default=0, help="step from which L_div counts (0)")
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--seed", type=int, default=0)
    asked = parser.parse_args(words)
    prepared = load_prepared(asked.data)
    columns = {"without L_div": "0", "with L_div": "0.5"}
    found = {name: _measured(_run(asked, weight), prepared) for name, weight in columns.items()}
    table = Table(title=f"{asked.steps} steps of {asked.batch}, L_div from step {asked.start}, seed {asked.seed}")
    for name in ("", *found):
        table.add_column(name)
    for row in ROWS:
        table.add_row(row, *(f"{values[row]:.4f}" for values in found.values()))
    console = Console()
    console.print(table)
    for row, meaning in ROWS.items():
        console.print(f"{row}: {meaning}", highlight=False)
    return 0


def _run(asked: argparse.Namespace, weight: str) -> Path:
    """The folder of a run with this weight of L_div, trained now where it is not there."""
    run = asked.out / f"diversity-{weight}-seed{asked.seed}"
    fields = {
        **{"data.root": asked.data, "data.batch": asked.batch, "engine.steps": asked.steps, "engine.seed": asked.seed},
        **{"engine.validate_every": asked.steps, "engine.save_every": asked.steps, "engine.device": "cpu"},
        **{"method.name": "lpd", "method.start": asked.start, "method.weight_diversity": weight},
    }
    flags = [word for name, value in fields.items() for word in (f"--{name}", str(value))]
    if not (run / "checkpoints" / "best.safetensors").is_file():
        train(load_config(asked.recipe, None, flags), run)
    return run


@torch.no_grad()
def _measured(run: Path, prepared: Prepared) -> dict[str, float]:
    segmenter = load_segmenter(run, "cpu")
    model = segmenter.model
    assert isinstance(model, PrototypeMaps)
    decoder: MapDecoder = model.decoder
    with evaluating(model):
        cosines, present = _cosines(segmenter, model, prepared)
    pairs = torch.triu_indices(decoder.per_class, decoder.per_class, 1)
    shown = (present > 0)[:, :, None, None].expand(cosines[:, :, 0].shape)
    of_class = (decoder.foreground, decoder.per_class, -1)
    scores = evaluate_run(run, None, "validation", "cpu")
    return {
        "exp(−J)": float(diversity_loss(cosines, shown, pairs, LPDConfig().diversity_temperature)),
        "map correlation": _correlation(cosines, present, pairs),
        "prototype cosine": float(mean_cosines(decoder.prototypes.view(*of_class))["cosine_within"]),
        "projected cosine": float(
            mean_cosines(decoder.project[-1](decoder.prototypes).view(*of_class))["cosine_within"]
        ),
        "mDice": scores["mdice"],
        "mIoU": scores["miou"],
        "mIoU, told": scores["with_image_labels"]["miou"],
    }


def _cosines(segmenter: Segmenter, model: PrototypeMaps, prepared: Prepared) -> tuple[Tensor, Tensor]:
    """Cosines of the deepest scale (N, F, K, h, w) and the image-level labels (N, F) of the validation images."""
    found, rows = [], []
    for name in prepared.with_present("validation"):
        image = read_image(prepared.image_path(name))[: _side(segmenter), : _side(segmenter)]
        x = prepare_image(image, segmenter.settings.scale, segmenter.settings.mean, segmenter.settings.std)
        found.append(model.decoder.cosines(model.encode(x[None]))[-1])
        rows.append(torch.from_numpy(prepared.present_row(name)[1:]))
    return torch.cat(found), torch.stack(rows)


def _side(segmenter: Segmenter) -> int:
    """The side of a window in pixels of the image before it is scaled."""
    return round(segmenter.settings.window / segmenter.settings.scale)


def _correlation(cosines: Tensor, present: Tensor, pairs: Tensor) -> float:
    flat = cosines.flatten(3)
    centred = torch.nn.functional.normalize(flat - flat.mean(-1, keepdim=True), dim=-1)
    first, second = pairs
    each = (centred[:, :, first] * centred[:, :, second]).sum(-1).mean(-1)  # (N, F)
    return float((each * present).sum() / present.sum())


if __name__ == "__main__":
    run_main(main)
