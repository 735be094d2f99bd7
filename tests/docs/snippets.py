"""Runs the blocks of code of a page, in order, in one folder; what cannot run is checked word by word.

    python -m tests.docs.snippets        lists every block of every page: run, read, or why not

A page is run as a reader would type it. Beside the code stands one thing at most: the comment <!-- not run: REASON -->
in front of a block that cannot run. A block whose first line is a comment with the name of a file is that file.
"""

import ast
import contextlib
import json
import re
import runpy
import shlex
import subprocess
import sys
import tomllib
import warnings
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from unittest import mock

import yaml
from torch.distributed import run as torchrun

from mpamatch import cli
from mpamatch.data.kinds import kinds
from mpamatch.engine.config import field_help
from mpamatch.studies.catalogue import STUDIES
from tests.docs import pages, world
from tests.docs.pages import PAGES, ROOT, Block
from tests.docs.terminal import Program, Terminal, recorded, text

SHELL = ("sh", "bash", "console")
READ: dict[str, Callable[[str], object]] = {
    "yaml": yaml.safe_load,
    "json": json.loads,
    "toml": tomllib.loads,
}
# Languages that are neither shell nor Python nor read, each with why.
OTHER = {
    "groovy": "a script for QuPath or Nextflow, which are not here",
    "text": "no code",
}
# Pages whose blocks are no snippets.
WHOLE = {
    "docs/API.md": "signatures, copied from the sources by tools/api_page.py; tests/test_api_page.py compares them"
}
# Programs that are not run wherever they stand: why, and what of their words is checked.
CHECKED = {
    "make": "builds and tests for minutes; that the Makefile has the target is checked",
    "pip": "asks an index of packages; that the extra exists is checked",
}
SHORTER = {
    "--steps": "2",
    "--engine.steps": "2",
    "--seeds": "1",
    "--rounds": "2,3,4",
    "--count": "2",
    "--jobs": "0",
    "--size": "1024",
    "--seconds": "1",
}


class Fault(AssertionError):
    """What is wrong with a block, and where."""


def run_page(page: str, folder: Path) -> None:
    """Runs the blocks of a page in an empty folder. Raises Fault for the first that does not do what it should."""
    names: dict[str, object] = {"__name__": "__main__"}
    environment = {"SLURM_ARRAY_TASK_ID": "0", "SLURM_ARRAY_TASK_COUNT": "1"}
    with Terminal(folder, PROGRAMS, environment) as terminal, world.narrowed(), world.unchanged():
        for block in pages.blocks(page):
            if page in WHOLE:
                continue
            try:
                do(block, terminal, names)
            except Fault:
                raise
            except BaseException as error:
                raise Fault(f"{block.place}: {type(error).__name__}: {error}\n{block.text}") from error


def do(block: Block, terminal: Terminal, names: dict[str, object]) -> None:
    """Runs a block, writes the file that it is, reads it, or checks the words of one that is not run."""
    if block.language in READ:
        READ[block.language](block.text)
    elif block.language not in (*SHELL, "python"):
        if block.language not in OTHER:
            raise Fault(f"{block.place}: a fence must begin with one of {known_languages()}, not {block.language}")
        return
    if block.reason:
        check(block)
    elif block.file:
        path = terminal.folder / block.file
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(block.text, encoding="utf-8")
        world.joins(block.file, terminal.folder)
    elif block.language == "python":
        run_python(block, terminal.folder, names)
    elif block.language == "console":
        run_console(block, terminal)
    elif block.language in SHELL:
        code, said = terminal.run(block.text)
        if code:
            raise Fault(f"{block.place}: exit code {code}\n{block.text}\n{said}")


def known_languages() -> str:
    """The words that a fence may begin with."""
    return ", ".join([*SHELL, "python", *READ, *OTHER])


def run_python(block: Block, folder: Path, names: dict[str, object]) -> None:
    """Runs Python with NAMES and what the page's blocks before it made; a traceback shows the lines of the page."""
    tree = ast.parse(block.text)
    world.bring((node.value for node in ast.walk(tree) if strings(node)), folder)
    code = compile("\n" * (block.line - 1) + block.text, str(PAGES[block.page]), "exec")
    names.update(world.NAMES)
    with contextlib.chdir(folder), recorded():
        exec(code, names)


def strings(node: ast.AST) -> bool:
    """Whether a node is a string."""
    return isinstance(node, ast.Constant) and isinstance(node.value, str)


def run_console(block: Block, terminal: Terminal) -> None:
    """Runs the lines after "$ " and compares what each prints with the lines below it; … stands for anything."""
    for command, shown in re.findall(r"^\$ (.+)\n((?:(?!\$ ).*\n?)*)", block.text, re.MULTILINE):
        code, said = terminal.run(command)
        wanted = ".*?".join(map(re.escape, shown.strip().split("…")))
        if code or not re.fullmatch(wanted, said.strip(), re.DOTALL):
            raise Fault(f"{block.place}: {command}\nexit code {code}, shown:\n{shown}\nsaid:\n{said}")


# What the programs of a shell do.


def run_mpamatch(words: list[str]) -> int:
    """`mpamatch …`, in this process."""
    world.bring(world.mentioned(sources_of(words)), Path.cwd())
    return cli.main(shorter(words))


def sources_of(words: list[str]) -> list[str]:
    """The words without the folder that `prepare` makes."""
    if words[:1] != ["prepare"]:
        return words
    at = 3 if kinds()[words[1]].takes_source else 2
    return [*words[:at], *words[at + 1 :]]


def shorter(words: list[str]) -> list[str]:
    """The words of a command for a run of seconds: fewer steps, seeds, values and pixels."""
    found = with_values(words, SHORTER)
    if words[:2] == ["prepare", "slides"] and "--patch" not in words:
        found += ["--patch", "128"]
    if words[:2] == ["prepare", "synthetic"] and "--images" not in words:
        found += ["--images", "32", "--size", "96"]
    if words[:1] == ["study"]:
        values = STUDIES[words[1]].values
        found += [word for name in ("--jobs", "--seeds") if name not in words for word in (name, SHORTER[name])]
        found += ["--values", ",".join(values[:2])] if "--values" not in words and len(values) > 2 else []
    if words[:1] == ["bench"]:
        found = [
            *found,
            "--out",
            "bench.jsonl",
            "--sizes",
            "tiny",
            *(["--compare", "eager"] if "--compare" not in words else []),
        ]
    return found


def with_values(words: list[str], values: Mapping[str, str]) -> list[str]:
    """The words with other values after some options."""
    return [values.get(before, word) for before, word in zip(["", *words], words, strict=False)]


def run_python_program(words: list[str]) -> int:
    """`python -m MODULE …` and `python FILE …`, in this process."""
    world.bring(world.mentioned(words), Path.cwd())
    module, rest = (words[1], words[2:]) if words[0] == "-m" else (words[0], words[1:])
    argv = [module, *shorter_script(module, rest)]
    searched = mock.patch.object(sys, "path", [str(Path.cwd()), *sys.path])
    with mock.patch.object(sys, "argv", argv), searched, warnings.catch_warnings():
        if words[0] == "-m":
            warnings.filterwarnings("ignore", message=".*found in sys.modules")  # of another page
            runpy.run_module(module, run_name="__main__", alter_sys=True)
        else:
            runpy.run_path(module, run_name="__main__")
    return 0


def shorter_script(module: str, words: list[str]) -> list[str]:
    """The words of a script for a run of seconds."""
    if module == "mpamatch":
        return shorter(words)
    if module == "mpamatch.benchmarks.bench_step":
        words = [*words, "--steps", "2", "--variants", "straightforward,fused"]  # a process each
    one_seed = {"--seeds": "0"} if module.startswith("experiments.") else {}
    found = with_values(words, SHORTER | one_seed)
    return [*found, "--jobs", "0"] if module == "experiments.compare_methods" and words[0] == "run" else found


def run_torchrun(words: list[str]) -> int:
    """`torchrun … -m mpamatch …`: two real ranks on the CPU, whatever the page has."""
    own, command = torchrun_words(words)
    if "--nnodes" in own:
        raise Fault("torchrun over several machines cannot run here: mark the block")
    if "demo" in command and "--data.root" not in command:
        command += ["--data.root", "data/made"]  # where it would paint 200 images
    world.bring(world.mentioned(command), Path.cwd())
    of_world = world.SMALL | {"model": {"norm": "group"}}  # which ranks on a CPU need
    fields = [f"--{section}.{name}={value}" for section, of in of_world.items() for name, value in of.items()]
    given = {word.partition("=")[0] for word in command}
    small = [word for field in fields for word in field.split("=") if field.partition("=")[0] not in given]
    more = small if command[0] == "train" and "--resume" not in command else []
    own = ["2" if before == "--nproc-per-node" else word for before, word in zip(["", *own], own, strict=False)]
    asked = [sys.executable, "-m", "torch.distributed.run", *own, "-m", "mpamatch", *shorter(command), *more]
    done = subprocess.run(asked, capture_output=True, text=True, check=False)
    sys.stdout.write(done.stdout)
    sys.stderr.write(done.stderr)
    return done.returncode


def torchrun_words(words: list[str]) -> tuple[list[str], list[str]]:
    """Splits the words of torchrun: its own, and those after `-m mpamatch`."""
    at = words.index("mpamatch")
    own = [word for word in words[:at] if word not in ("-m", "--")]
    return own, words[at + 1 :]


def run_make(words: list[str]) -> int:
    """Looks for the targets in the Makefile."""
    targets = re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
    unknown = [word for word in words if not word.startswith("-") and "=" not in word and word not in targets]
    if unknown:
        raise Fault(f"make: the Makefile has no target {', '.join(unknown)}")
    return 0


def run_pip(words: list[str]) -> int:
    """Looks for the extras of `pip install 'mpamatch[…]'` in pyproject.toml; installs a folder, without an index."""
    if words[:1] != ["install"]:
        raise Fault(f"pip {' '.join(words)}: only pip install is known")
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    for word in words[1:]:
        named, _, extras = word.rstrip("]").partition("[")
        if named in (project["name"], "."):
            unknown = [extra for extra in extras.split(",") if extra and extra not in project["optional-dependencies"]]
            if unknown:
                raise Fault(f"pip install {word}: pyproject.toml has no extra {', '.join(unknown)}")
        elif Path(word).is_dir():
            install(Path(word))
        elif not word.startswith("-"):
            raise Fault(f"pip install {word}: neither mpamatch nor a folder")
    return 0


def install(package: Path) -> None:
    """Installs a package of the page into a folder of its own, which is on the path until the page ends."""
    target = package.resolve().parent / "installed"
    words = ["--quiet", "--no-deps", "--no-build-isolation", "--no-index", "--target", str(target), f"./{package}"]
    subprocess.run([sys.executable, "-m", "pip", "install", *words], check=True, capture_output=True)
    sys.path.insert(0, str(target))


def run_command(words: list[str]) -> int:
    """`srun COMMAND …`: the command alone."""
    return PROGRAMS[words[0]](words[1:])


PROGRAMS: dict[str, Program] = {
    "mpamatch": run_mpamatch,
    "mpamatch-train": lambda words: run_mpamatch(["train", *words]),
    "python": run_python_program,
    "torchrun": run_torchrun,
    "make": run_make,
    "pip": run_pip,
    "srun": run_command,
}


# What is checked of a block that is not run.


def check(block: Block) -> None:
    """Checks that the code parses, and that each command of ours has the options that it is given."""
    if block.language == "python":
        ast.parse(block.text)
        return
    if block.language not in SHELL:
        return
    parsed = subprocess.run(["bash", "-n", "-c", block.text], capture_output=True, text=True, check=False)
    if parsed.returncode:
        raise Fault(f"{block.place}: {parsed.stderr}")
    for words in commands(block.text):
        for unknown in unknown_options(words):
            raise Fault(f"{block.place}: {words[0]} has no option {unknown}")


def check_sentences(page: str) -> Iterator[str]:
    """Yields what is wrong with the commands that stand within sentences; they are never run."""
    for line, code in pages.commands(page):
        if code.split()[0] in (*CHECKED, "mpamatch", "mpamatch-train", "torchrun") and "…" not in code:
            try:
                unknown = unknown_options(shlex.split(code))
            except (Fault, KeyError, ValueError) as error:
                unknown = [str(error)]
            yield from (f"{page}:{line}: `{code}`: {option}" for option in unknown)


def commands(code: str) -> Iterator[list[str]]:
    """The words of each line of shell code that begins with one of our programs, behind `srun` too."""
    for line in code.replace("\\\n", " ").splitlines():
        words = shlex.split(line, comments=True) if line.count("'") % 2 == 0 and line.count('"') % 2 == 0 else []
        words = words[1:] if words[:1] == ["srun"] else words
        if words and words[0] in PROGRAMS:
            yield words


def unknown_options(words: list[str]) -> list[str]:
    """The options of a command that it does not have."""
    name, *rest = words
    if name in ("make", "pip"):
        PROGRAMS[name](rest)
        return []
    if name == "torchrun":
        own, rest = torchrun_words(rest)
        known = torchrun.get_args_parser()._option_string_actions
        unknown = [word for word in own if word.startswith("--") and word not in known]
        return unknown + unknown_options(["mpamatch", *rest])
    options = [word for word in rest if re.match("--[a-z]", word)]
    if name == "python":
        return [option for option in options if option not in help_of(rest)]
    command, *_ = ["train", *rest] if name == "mpamatch-train" else rest
    known = [*cli.COMMANDS[command](cli.Parser())._option_string_actions]
    fields = {field.partition(" ")[0] for field, _, _ in field_help()} if command in cli.TAKE_FIELDS else set()
    known += [f"--{part}" for field in fields for part in (field, field.rpartition(".")[2])]
    return [option for option in options if option not in known]


def help_of(words: list[str]) -> str:
    """What `python … --help` prints."""
    with recorded() as (out, _):
        with contextlib.suppress(SystemExit):
            run_python_program([*(words[:2] if words[0] == "-m" else [str(ROOT / words[0])]), "--help"])
        return text(out)


def listed() -> Iterator[str]:
    """A line for each block."""
    for page in PAGES:
        for block in [] if page in WHOLE else pages.blocks(page):
            if block.language in OTHER:
                continue
            programs = {words[0] for words in commands(block.text)} if block.language in SHELL else set()
            partly = "; ".join(f"{name}: {CHECKED[name]}" for name in sorted(programs & {*CHECKED}))
            does = "written" if block.file else "read" if block.language in READ else "run"
            state = f"not run: {block.reason}" if block.reason else does + (f" ({partly})" if partly else "")
            yield f"{block.place:28} {block.language:8} {state}"
    for page, reason in WHOLE.items():
        yield f"{page:28} {'':8} not run: {reason}"


if __name__ == "__main__":
    print("\n".join(listed()))
