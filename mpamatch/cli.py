"""The command line: parsers alone, so that nothing heavy is imported before a command is chosen."""

import argparse
import importlib
import os
import sys
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from mpamatch.environment import show_all
from mpamatch.errors import InputError, Note, is_out_of_memory, reason, unknown
from mpamatch.signals import TERMINATED, Terminated, terminable

TAKE_FIELDS = ("train", "study")  # commands after which any field of the configuration is an option
_SMALLER = "lower data.batch, data.unlabelled_batch or data.crop, or raise engine.accumulate"
LESS = {  # what a command can do with less memory
    "train": _SMALLER,
    "study": f"{_SMALLER}, or take fewer --jobs",
    "predict": "give images of fewer pixels, or save large ones as pyramidal TIFF, which is read in parts",
    "other": "end other programs, or give images of fewer pixels",
}
STORY = """\
four commands tell the story:
  mpamatch prepare glas ~/Warwick_QU data/glas      any raw set, split by patient, problems named
  mpamatch split data/glas --labelled 10%           the labels of a tenth of the patients, the rest is unlabelled
  mpamatch-train --recipe glas --data.root data/glas
  mpamatch predict runs/glas-001 images/ --out out/

without any data: mpamatch-train makes its own tissue and ends with a table and overlays in about three minutes.
"""


class Parser(argparse.ArgumentParser):
    """Ends with one sentence and exit code 2 if the arguments are wrong."""

    def error(self, message: str) -> None:  # type: ignore[override]
        raise SystemExit(_end(f"{self.prog}: {message}", 2))


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs `mpamatch COMMAND …`.

    Of several ranks under torchrun only the first one to know says why all of them end.

    Args:
        arguments: the words after `mpamatch`; None: those of this process.

    Returns:
        The exit code: 0; 1 if `check` found a problem or a run of `study` failed; 2 for bad input; 130 if interrupted;
        143 after SIGTERM.
    """
    show_all()
    words = list(sys.argv[1:] if arguments is None else arguments)
    ranks = _ranks()
    if ranks is None:
        return _guarded(words)
    return ranks.leave(2 if ranks.refused() else _guarded(words))


def _guarded(words: list[str]) -> int:
    """Runs the command and turns the errors that users can do something about into one sentence and an exit code."""
    try:
        with terminable(), _notes_said():
            return _run(words)
    except InputError as error:
        return _end(f"mpamatch: {error}", 2)
    except OSError as error:  # a full disk, or a folder that cannot be written: no check could foresee it
        if error.strerror is None:
            raise
        return _end(f"mpamatch: {f'{error.filename}: ' if error.filename else ''}{error.strerror}.", 2)
    except (MemoryError, RuntimeError) as error:
        if is_out_of_memory(error):
            less = LESS.get(words[0] if words else "other", LESS["other"])
            return _end(f"mpamatch: memory ran out ({reason(error)}): {less}.", 2)
        ranks = _ranks()
        if ranks is None or not ranks.lost_another(error):
            raise
        return ranks.left_alone(error)
    except KeyboardInterrupt:
        return _end("mpamatch: interrupted", 130)
    except Terminated as why:
        ranks = _ranks()
        if ranks is None or ranks.rank() == 0:  # said by itself: what ranks say once stands for bad input
            print(f"mpamatch: {why}", file=sys.stderr)
        return TERMINATED


@contextmanager
def _notes_said() -> Iterator[None]:
    """Prints each `Note` among the warnings as a sentence, without the line of code that it came from."""
    with warnings.catch_warnings():
        shown = warnings.showwarning

        def show(message: Any, category: Any, *where: Any, **more: Any) -> None:
            if issubclass(category, Note):
                print(f"note: {message}", file=sys.stderr)
            else:
                shown(message, category, *where, **more)

        warnings.showwarning = show
        yield


def _ranks() -> Any:
    """Imports mpamatch.ranks under torchrun; None without it, as torch takes seconds to import."""
    return importlib.import_module("mpamatch.ranks") if "TORCHELASTIC_RUN_ID" in os.environ else None


def _end(sentence: str, code: int) -> int:
    """Prints why the command ends, once for all ranks; returns `code`."""
    ranks = _ranks()
    if ranks:
        ranks.say_once(sentence)
    else:
        print(sentence, file=sys.stderr)
    return code


def _run(words: list[str]) -> int:
    """Parses the words and runs the command that they begin with. Raises InputError for an unknown word."""
    parser = _parser(words)
    if words and not words[0].startswith("-") and words[0] not in COMMANDS:
        raise unknown("command", words[0], COMMANDS)
    if words[:1] == ["prepare"] and len(words) > 1 and not words[1].startswith("-"):
        _kinds().kind_named(words[1])
    parsed, rest = parser.parse_known_args(words)
    if rest and parsed.command not in TAKE_FIELDS:
        known = [word for action in COMMANDS[parsed.command](Parser())._actions for word in action.option_strings]
        raise (
            unknown("option", rest[0], known)
            if rest[0].startswith("-")
            else InputError(f"{rest[0]!r}: unexpected; see mpamatch {parsed.command} --help.")
        )
    if parsed.command == "prepare":
        _place_folders(parsed)
    parsed.flags = rest
    if "most_megapixels" in parsed:
        stored = importlib.import_module("mpamatch.stored")
        stored.allow_megapixels(stored.MOST_MEGAPIXELS if parsed.most_megapixels is None else parsed.most_megapixels)
    return importlib.import_module(f"mpamatch.commands.{parsed.command}").run(parsed)


def _kinds() -> Any:
    """Imports mpamatch.data.kinds; for `prepare` alone, as finding the kinds parses every reader."""
    return importlib.import_module("mpamatch.data.kinds")


def _place_folders(parsed: argparse.Namespace) -> None:
    """Takes the only folder as DEST if the kind makes its own images and has no SOURCE: `prepare synthetic DEST`."""
    if not _kinds().kind_named(parsed.kind).takes_source:
        if parsed.dest is not None:
            raise InputError(
                f"prepare {parsed.kind}: makes its own images and takes one folder, "
                f"not {parsed.source} and {parsed.dest}."
            )
        parsed.source, parsed.dest = None, parsed.source
    elif parsed.dest is None:
        raise InputError(f"prepare {parsed.kind}: name the folder to make after {parsed.source}.")


def main_train() -> int:
    """Runs `mpamatch-train …`, which is `mpamatch train …`; returns the exit code."""
    return main(["train", *sys.argv[1:]])


def _parser(words: list[str]) -> argparse.ArgumentParser:
    """Builds the parser: every command by name, and the options of the one that `words` begin with."""
    parser = Parser(
        prog="mpamatch",
        description="Semi-supervised segmentation of tissue images: a few labelled patches, many plain ones.",
        epilog=STORY,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND", parser_class=Parser)
    for name, add in COMMANDS.items():
        command = commands.add_parser(name, help=HELP[name], description=HELP[name], allow_abbrev=False)
        if words[:1] == [name]:
            add(command)
    return parser


HELP = {
    "prepare": "turn a raw data set into the prepared form, split by patient",
    "split": "choose which training images count as labelled",
    "check": "name every problem of a prepared set and draw a contact sheet",
    "train": "train a model (without arguments: the demo)",
    "evaluate": "score a run on one part of its data",
    "report": "a page, a model card and numbers on what a run is worth",
    "predict": "masks, overlays, outlines and areas for images and whole slides",
    "suggest": "which images or regions of slides to label next, with the prediction to correct",
    "export": "write a run's network as an ONNX file or a bioimage.io package",
    "prototypes": "draw what the prototypes of a run see in images",
    "study": "sweep one choice over paired seeds: a table and a figure",
    "bench": "measure the kernels against what one would use instead, or tune them",
    "info": "versions, devices, text encoders, recipes",
}


def _prepare(parser: argparse.ArgumentParser) -> argparse.ArgumentParser:
    found = _kinds().kinds().values()
    usages = ["KIND SOURCE", *(kind.name for kind in found if not kind.takes_source)]
    parser.usage = " | ".join(f"mpamatch prepare {words} DEST [options]" for words in usages)
    parser.add_argument("kind", metavar="KIND", help=_shown("; ".join(f"{kind.name}: {kind.help}" for kind in found)))
    parser.add_argument("source", metavar="SOURCE", help="the raw folder")
    parser.add_argument("dest", metavar="DEST", nargs="?", help="the prepared folder to make")
    for option in _kinds().every_option():
        reads: dict[str, Any] = {"action": "store_true"} if option.type is bool else {"type": option.type}
        parser.add_argument(option.flag, help=_shown(option.help), **reads)
    parser.add_argument("--microns-per-pixel", type=float, help="size of a pixel, where known")
    parser.add_argument(
        "--parts-of", metavar="DATA", help="a prepared set whose patients keep their parts; new ones are for training"
    )
    return _largest(parser)


def _largest(parser: argparse.ArgumentParser) -> argparse.ArgumentParser:
    parser.add_argument(
        "--most-megapixels",
        type=float,
        metavar="N",
        help="the largest plain image that is read; it stays in memory whole (300)",
    )
    return parser


def _shown(text: str) -> str:
    """Escapes `text` so that argparse shows it unchanged."""
    return text.replace("%", "%%")


def _split(parser: argparse.ArgumentParser) -> argparse.ArgumentParser:
    parser.usage = (
        "mpamatch split DATA (--labelled N | --images N | --list FILE [--masks DIR]) [--seed N] [--name NAME]"
    )
    parser.add_argument("data", metavar="DATA", help="a prepared folder")
    parser.add_argument("--labelled", metavar="N", help="how many patients, with all their images: 10%% or 4")
    parser.add_argument("--images", metavar="N", help="how many images, whichever patients they are of: 10%% or 8")
    parser.add_argument(
        "--list", metavar="FILE", help="the images named in it, one in a line, as published splits come"
    )
    parser.add_argument(
        "--masks", metavar="DIR", help="take masks into the set, of images of the --list that have none, by their names"
    )
    parser.add_argument("--seed", type=int, help="which draw (0); smaller budgets lie within larger ones")
    parser.add_argument("--name", help="of the split of a --list (the list's own)")
    return parser


def _check(parser: argparse.ArgumentParser) -> argparse.ArgumentParser:
    parser.add_argument("data", metavar="DATA", help="a prepared folder")
    return parser


def _train(parser: argparse.ArgumentParser) -> argparse.ArgumentParser:
    parser.usage = (
        "mpamatch train [--recipe NAME | --config FILE] [--run DIR | --resume DIR [--data DIR]] [--FIELD VALUE …]"
    )
    parser.epilog = (
        "Any field of the configuration is an option, such as --engine.learning_rate 0.001, or by its last part if no "
        "other field ends in it: --learning_rate 0.001; --fields lists them."
    )
    parser.add_argument(
        "--recipe",
        help="settings for a data set; `mpamatch info` lists them (by its name, else folder; demo without data)",
    )
    parser.add_argument(
        "--config", help="settings in a YAML file of your own, on top of the recipe where both are given"
    )
    parser.add_argument("--run", help="folder of the run, which must not exist (runs/RECIPE-001, -002, …)")
    parser.add_argument("--resume", help="folder of a run to go on with")
    parser.add_argument("--data", help="where the prepared set of --resume lies now, if it was moved")
    parser.add_argument("--fields", action="store_true", help="list every field and what it means")
    return parser


def _evaluate(parser: argparse.ArgumentParser) -> argparse.ArgumentParser:
    parser.add_argument("run", metavar="RUN", help="a run folder")
    parser.add_argument("--data", help="a prepared folder (the one it was trained on)")
    parser.add_argument("--part", help="train, validation or test (test; validation if no image of test is labelled)")
    parser.add_argument("--device", default="auto", choices=("auto", "cpu", "cuda"), help="where (auto)")
    return parser


def _report(parser: argparse.ArgumentParser) -> argparse.ArgumentParser:
    parser.epilog = "It writes report.html, which holds all it shows, summary.json and MODEL_CARD.md."
    parser.add_argument("runs", metavar="RUN", nargs="+", help="run folders; several are compared with the first")
    parser.add_argument("--out", help="folder for the three files (that of the run, if it is one)")
    parser.add_argument("--data", help="a prepared folder to score on (the one a run was trained on)")
    parser.add_argument("--part", help="train, validation or test (test; validation if no image of test is labelled)")
    parser.add_argument("--device", default="auto", choices=("auto", "cpu", "cuda"), help="where (auto)")
    return parser


def _predict(parser: argparse.ArgumentParser) -> argparse.ArgumentParser:
    parser.epilog = "The same command goes on where it was stopped, inside of a slide too."
    parser.add_argument("run", metavar="RUN", help="a run folder, or an ONNX file of mpamatch export")
    parser.add_argument("inputs", metavar="INPUT", nargs="+", help="images, whole slides, or folders of them")
    parser.add_argument("--out", required=True, help="folder for masks, overlays or regions, and areas.csv")
    parser.add_argument(
        "--overlap", type=float, help="share of a window that neighbours overlap (as in the run's validation)"
    )
    parser.add_argument("--device", default="auto", choices=("auto", "cpu", "cuda"), help="where (auto)")
    slides = _of_slides(parser)
    slides.add_argument("--shard", metavar="I/N|auto", help="the I-th of N shares; auto: by SLURM's array or torchrun")
    return parser


def _of_slides(parser: argparse.ArgumentParser) -> argparse._ArgumentGroup:
    """Adds the options of images and slides that predict and suggest share; returns the group of those for slides."""
    parser.add_argument(
        "--on-error", choices=("stop", "skip"),
        help="at a file that cannot be read: stop, or name it in the end and go on (images: stop, slides: skip)",
    )  # fmt: skip
    slides = parser.add_argument_group("whole slides")
    slides.add_argument(
        "--slide-mpp", "--mpp", dest="mpp", type=float, help="µm per pixel of slides whose files name none"
    )
    slides.add_argument("--model-mpp", type=float, help="µm per pixel of the training images, if the run names none")
    slides.add_argument("--tissue", metavar="auto|all|FILE", help="where to look; GeoJSON, a file or a folder (auto)")
    slides.add_argument(
        "--origin", choices=("qupath", "slide"),
        help="where coordinates begin: as QuPath shows the slide, or at its corner as with --no-crop (qupath)",
    )  # fmt: skip
    slides.add_argument(
        "--simplify", type=float, metavar="PIXELS", help="of outlines, in pixels of the network; 0: every corner (1)"
    )
    return slides


def _suggest(parser: argparse.ArgumentParser) -> argparse.ArgumentParser:
    parser.usage = "mpamatch suggest RUN DATA|INPUT… --out DIR [options]"
    parser.epilog = "It ends with the command that brings the corrected masks or regions back."
    parser.add_argument("run", metavar="RUN", help="a run folder")
    parser.add_argument(
        "inputs", metavar="INPUT", nargs="+", help="a prepared folder, or images or whole slides or folders of them"
    )
    parser.add_argument("--out", required=True, help="folder for the table, the sheet and what to correct; a new one")
    parser.add_argument("--count", type=int, default=20, help="how many (20)")
    parser.add_argument(
        "--by", choices=("entropy", "disagreement"), default="entropy",
        help="entropy of the mean over flips, or disagreement with recoloured views (entropy)",
    )  # fmt: skip
    parser.add_argument(
        "--spread", action=argparse.BooleanOptionalAction, default=True,
        help="choose unlike ones among the most uncertain, or by uncertainty alone",
    )  # fmt: skip
    parser.add_argument("--per-patient", type=int, metavar="N", help="no more than N of one patient (any number)")
    parser.add_argument("--split", help="of a prepared folder: which of its splits says what is labelled")
    parser.add_argument("--group-regex", help="of images and slides: the part of a file name that tells the patient")
    parser.add_argument("--device", default="auto", choices=("auto", "cpu", "cuda"), help="where (auto)")
    slides = _of_slides(parser)
    slides.add_argument("--annotations", metavar="DIR", help="what is annotated already, a file per slide (nothing)")
    return _largest(parser)


def _export(parser: argparse.ArgumentParser) -> argparse.ArgumentParser:
    parser.epilog = "Needs pip install 'mpamatch[export]'. The file is compared with torch before it is left there."
    parser.add_argument("run", metavar="RUN", help="a run folder")
    parser.add_argument("--out", metavar="FILE", required=True, help="the file to write: .onnx, or .zip for bioimageio")
    parser.add_argument("--format", metavar="onnx|bioimageio", help="as the name of FILE says")
    parser.add_argument(
        "--images", metavar="INPUT", nargs="+", help="images to compare on (those that the run was trained for)"
    )
    return parser


def _prototypes(parser: argparse.ArgumentParser) -> argparse.ArgumentParser:
    parser.add_argument("run", metavar="RUN", help="a run folder of a method with image prototypes")
    parser.add_argument("inputs", metavar="INPUT", nargs="+", help="image files or folders of them")
    parser.add_argument("--out", required=True, help="folder for the pictures")
    parser.add_argument("--device", default="auto", choices=("auto", "cpu", "cuda"), help="where (auto)")
    return _largest(parser)


def _study(parser: argparse.ArgumentParser) -> argparse.ArgumentParser:
    parser.usage = "mpamatch study NAME [--recipe NAME | --config FILE] --data.root DATA [options] [--FIELD VALUE …]"
    parser.epilog = "Any field of the configuration is an option, as for train. The same command goes on where it was."
    parser.add_argument(
        "study",
        metavar="NAME",
        help="prototypes, threshold, tokens, threshold-tokens, terms, text-encoders, prompts, prompt-noise, labels or "
        "seeds",
    )
    parser.add_argument("--recipe", help="settings for a data set; `mpamatch info` lists them")
    parser.add_argument("--config", help="settings in a YAML file, on top of the recipe where both are given")
    parser.add_argument("--out", help="folder of the study (runs/study-NAME-RECIPE)")
    parser.add_argument("--values", help="what to try instead of the study's own values, with commas")
    parser.add_argument("--across", help="the same for the second field of threshold-tokens, context tokens")
    parser.add_argument("--methods", help="with commas (what the study compares)")
    parser.add_argument("--seeds", type=int, default=3, help="how many; each draws patients, weights and crops (3)")
    parser.add_argument("--first-seed", type=int, default=0, help="where they begin (0)")
    parser.add_argument("--labelled", help="how many patients are labelled: 10%% or 4 (10%%); or '8 images'")
    parser.add_argument("--steps", type=int, help="short for --engine.steps")
    parser.add_argument(
        "--test", action="store_true", help="score the test part too, once per run; else validation alone"
    )
    parser.add_argument("--jobs", type=int, default=1, help="runs at a time; 0: one by one in this process (1)")
    return parser


def _bench(parser: argparse.ArgumentParser) -> argparse.ArgumentParser:
    parser.add_argument("--op", help="one operation, such as prototype_contrast (all)")
    parser.add_argument("--device", choices=("cpu", "cuda"), help="where (the GPU if there is one)")
    parser.add_argument("--compare", help="competitors by name, with commas: eager, compile, loop, … (all)")
    parser.add_argument(
        "--sizes", choices=("small", "full", "goal", "rest", "tiny"), default="full",
        help="small: a quick look; goal: one case of each operation; rest: full without those; tiny: a dry run (full)",
    )  # fmt: skip
    parser.add_argument("--dtype", help="float32, bfloat16, …, with commas (float32; on a GPU also bfloat16)")
    parser.add_argument("--out", help="file of JSON lines (benchmarks/results/MACHINE.jsonl; --tune: none)")
    parser.add_argument("--tune", action="store_true", help="time tile sizes on this GPU and write their table")
    parser.add_argument("--seconds", type=float, default=600.0, help="how long --tune may search (600)")
    return parser


def _info(parser: argparse.ArgumentParser) -> argparse.ArgumentParser:
    parser.add_argument("--json", action="store_true", help="machine-readable")
    parser.add_argument("--check", action="store_true", help="compare every kernel with eager PyTorch first")
    return parser


COMMANDS = {
    "prepare": _prepare,
    "split": _split,
    "check": _check,
    "train": _train,
    "evaluate": _evaluate,
    "report": _report,
    "predict": _predict,
    "suggest": _suggest,
    "export": _export,
    "prototypes": _prototypes,
    "study": _study,
    "bench": _bench,
    "info": _info,
}

if __name__ == "__main__":
    sys.exit(main())
