"""Sizes of tiles for every kernel, from the committed tables in tiles/: no search when a kernel is called.

A table that was timed has the name of its device, nvidia-h100-80gb-hbm3.json; one that was not, the name of a kind of
devices, sm_90.json. It says how it came about (`tuned`, `origin`) and holds entries: per kernel, in order, the upper
bounds within which an entry holds (`bits` of the input's dtype, D, M, C; no bound: any size) and the settings. The
first entry that holds is taken. A device takes the nearest table that fits into its shared memory, with `programs` in
proportion to its multiprocessors.

BLOCK_M and BLOCK_D are upper bounds: a smaller axis gets a smaller tile. `resident` is the largest number of parts of D
in which prototypes that are one tile are loaded once, before the loop over pixels, and stay in shared memory.
"""

import contextlib
import itertools
import json
import os
import re
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

FOLDER = Path(__file__).parent / "tiles"
SMALLEST, LARGEST = 16, 512  # tiles of prototypes and of channels
BOUNDS = ("bits", "D", "M", "C")
Setting = dict[str, int]
Entry = dict[str, Any]  # {"kernel": name, one of BOUNDS: int, …, "setting": Setting}


class Device(NamedTuple):
    name: str
    capability: tuple[int, int]
    multiprocessors: int
    shared_memory: int  # bytes a program may have, if it asks for more than 48 KB


class Table(NamedTuple):
    device: Device  # that was timed, or one of the kind
    tuned: bool
    origin: str  # how the settings were found: of which run, or that none was timed
    entries: tuple[Entry, ...]


class Plan(NamedTuple):
    """How a kernel goes over pixels, prototypes and channels."""

    rows: int  # M = C·K, or C·k_pad
    m_parts: int  # tiles of prototypes
    d_parts: int  # tiles of channels
    block_n: int
    block_m: int
    block_d: int
    programs: int
    resident: bool  # whether the prototypes, one tile, stay in shared memory
    keep: bool  # whether, with several tiles of prototypes, a block of pixels does while they go by
    constants: dict[str, int]  # of every launch


# Set by `as_device` and `using`.
_device: Device | None = None
_settings: dict[str, Setting] = {}


@torch.compiler.assume_constant_result
def lookup(kernel: str, device: torch.device, *, bits: int, D: int = 0, M: int = 0, C: int = 0) -> Setting:
    """The setting of `kernel` for inputs of `bits` a number and these sizes, on `device` or the nearest known to it."""
    return _settings.get(kernel) or _lookup(kernel, _device or describe(device), bits, D, M, C)


@torch.compiler.assume_constant_result
def resident_parts(kernel: str, device: torch.device, *, bits: int, D: int, M: int) -> int:
    """In how many parts of D, at most, prototypes stay in shared memory; 0 for a kernel that has no use for it."""
    return lookup(kernel, device, bits=bits, D=D, M=M).get("resident", 0)


def plan(kernel: str, embedding: Tensor, prototypes: Tensor, k_pad: int | None = None) -> Plan:
    """The tiles of `kernel` for embedding (N, D) and prototypes (C, K, D), of which a class takes k_pad rows (None: K).

    BLOCK_M and BLOCK_D of the table are upper bounds.
    """
    classes, per_class, width = prototypes.shape
    count = classes * (per_class if k_pad is None else k_pad)
    bits = embedding.itemsize * 8
    tile = lookup(kernel, embedding.device, bits=bits, D=width, M=classes * per_class)
    block_m = min(max(SMALLEST, power_of_two(count)), tile["BLOCK_M"])
    block_d = min(max(SMALLEST, power_of_two(width)), tile["BLOCK_D"])
    m_parts, d_parts = -(-count // block_m), -(-width // block_d)
    constants = {"D_PARTS": d_parts, "BLOCK_N": tile["BLOCK_N"], "BLOCK_M": block_m, "BLOCK_D": block_d}
    constants |= {"num_warps": tile["num_warps"], "num_stages": tile["num_stages"]}
    one_tile = m_parts == 1 or kernel.endswith(".in_prototypes")  # which has a program for each
    resident = one_tile and d_parts <= resident_parts(
        kernel, embedding.device, bits=bits, D=width, M=classes * per_class
    )
    keep = m_parts > 1 and d_parts <= tile.get("keep", 0)
    return Plan(count, m_parts, d_parts, tile["BLOCK_N"], block_m, block_d, tile["programs"], resident, keep, constants)


def padded(size: int) -> int:
    """An axis of packed prototypes: a multiple of every BLOCK_M or BLOCK_D that a plan may have for it."""
    block = min(max(SMALLEST, power_of_two(size)), LARGEST)
    return -(-size // block) * block


@cache
def _lookup(kernel: str, device: Device, *sizes: int) -> Setting:
    bound = dict(zip(BOUNDS, sizes, strict=True))
    for entry in entries_for(device):
        if entry["kernel"] == kernel and all(bound[name] <= entry.get(name, bound[name]) for name in BOUNDS):
            setting: Setting = entry["setting"]
            return setting
    raise LookupError(f"{nearest(device).device.name}: the table has no entry of {kernel} for {bound}.")


def entries_for(device: Device) -> Iterator[Entry]:
    """Those of the nearest table, with as many programs a multiprocessor as they have there."""
    table = nearest(device)
    for entry in table.entries:
        setting = dict(entry["setting"])
        if "programs" in setting:
            setting["programs"] = max(1, setting["programs"] * device.multiprocessors // table.device.multiprocessors)
        yield entry | {"setting": setting}


def source(device: torch.device | Device) -> str:
    """One sentence: which table serves `device`, and whether it was tuned."""
    own = describe(device) if isinstance(device, torch.device) else device
    table = nearest(own)
    relation = "" if table.device.name == own.name else f", the nearest to {own.name}, which has none of its own"
    return f"tile sizes from the table of {table.device.name}{relation} ({table.origin})"


def nearest(device: Device) -> Table:
    """The table that was timed on such a device; else, of those that fit into its shared memory, the one of the nearest
    compute capability, a timed one first, then the nearest number of multiprocessors."""

    def away(table: Table) -> tuple[Any, ...]:
        known = table.device
        (major, minor), (known_major, known_minor) = device.capability, known.capability
        return (
            known.name != device.name,
            max(0, known.shared_memory - device.shared_memory),
            abs(major - known_major),
            abs(minor - known_minor),
            not table.tuned,
            abs(device.multiprocessors - known.multiprocessors),
            known.name,
        )

    return min(tables().values(), key=away)


@cache
def tables() -> dict[str, Table]:
    """All tables by the name of their device, or kind of devices."""
    found = [_read(path) for path in sorted(FOLDER.glob("*.json"))]
    return {table.device.name: table for table in found}


def _read(path: Path) -> Table:
    content = json.loads(path.read_text(encoding="utf-8"))
    major, minor = content["capability"]
    device = Device(content["device"], (major, minor), content["multiprocessors"], content["shared_memory"])
    return Table(device, content["tuned"], content["origin"], tuple(content["entries"]))


@cache
def describe(device: torch.device) -> Device:
    """What is known of a CUDA device. Other devices (the interpreter's) take the place of an H100."""
    if device.type != "cuda":
        return Device("NVIDIA H100 80GB HBM3", (9, 0), 132, 232448)
    found = torch.cuda.get_device_properties(device)
    shared_memory = found.shared_memory_per_block_optin  # type: ignore[attr-defined]
    return Device(found.name, (found.major, found.minor), found.multi_processor_count, shared_memory)


@contextlib.contextmanager
def as_device(device: Device) -> Iterator[None]:
    """Within it, lookups answer for `device`, whatever device the tensors are on."""
    global _device
    before, _device = _device, device
    try:
        yield
    finally:
        _device = before


@contextlib.contextmanager
def using(kernel: str, setting: Setting) -> Iterator[None]:
    """Within it, `kernel` runs with `setting` at every size. For measuring candidates."""
    before = _settings.copy()
    _settings[kernel] = setting
    try:
        yield
    finally:
        _settings.clear()
        _settings.update(before)


def candidates(
    start: Setting, *, bits: int, multiprocessors: int, D: int = 0, M: int = 0, C: int = 0
) -> Iterator[Setting]:
    """The settings that a search at these sizes tries in place of `start`, with its fields. Some may not fit on a
    device."""
    if "BLOCK_P" in start:
        yield from _streaming("programs" in start, multiprocessors, C)
        return
    narrow = bits == 32
    blocks_n = (32, 64) if narrow else (64, 128)
    blocks_m = {min(power_of_two(max(16, M)), largest) for largest in ((32, 64) if narrow else (64, 128, 256))}
    blocks_d = {min(power_of_two(max(16, D)), largest) for largest in ((32, 64) if narrow else (64, 128, 256))}
    axes = itertools.product(
        blocks_n, sorted(blocks_m), sorted(blocks_d), (4, 8), (2, 3), (1, 2), (0, 4) if "resident" in start else (None,)
    )
    for block_n, block_m, block_d, warps, stages, share, resident in axes:
        setting = {
            "BLOCK_N": block_n,
            "BLOCK_M": block_m,
            "BLOCK_D": block_d,
            "programs": share * multiprocessors,
            "num_warps": warps,
            "num_stages": stages,
        }
        yield setting if resident is None else setting | {"resident": resident}


def _streaming(in_slots: bool, multiprocessors: int, C: int) -> Iterator[Setting]:
    rows, shares = power_of_two(C), (2, 4, 8) if in_slots else (0,)
    for elements, warps, share in itertools.product((1024, 2048, 4096, 8192), (2, 4, 8), shares):
        setting = {"BLOCK_P": max(16, elements // rows), "num_warps": warps, "num_stages": 2}
        yield setting | ({"programs": share * multiprocessors} if in_slots else {})


def power_of_two(size: int) -> int:
    """The smallest power of two that is at least `size`."""
    return 1 << (size - 1).bit_length()


def write(
    device: Device,
    entries: Sequence[Entry],
    kernels: Iterable[str],
    *,
    origin: str,
    folder: Path = FOLDER,
) -> Path:
    """Writes the table of a device whose entries were timed, whole or not at all; returns its path.

    `origin` says by which run: date, versions, sizes. An entry is {"kernel": …, bounds…, "setting": …}, the narrower
    bounds first; each of `kernels` needs one without bounds on D, M and C for each width of dtype, else ValueError.
    """
    for kernel, bits in itertools.product(kernels, (16, 32)):
        if not any(_holds_for_all(entry, kernel, bits) for entry in entries):
            raise ValueError(f"entries: expected one of {kernel} for {bits} bits without a bound on D, M or C.")
    content = {
        "device": device.name,
        "capability": list(device.capability),
        "multiprocessors": device.multiprocessors,
        "shared_memory": device.shared_memory,
        "tuned": True,
        "origin": origin,
    }
    path = folder / f"{slug(device.name)}.json"
    head = json.dumps(content, indent=2, ensure_ascii=False).removesuffix("\n}")
    lines = ",\n".join("    " + json.dumps(entry) for entry in entries)
    with tempfile.NamedTemporaryFile("w", dir=folder, suffix=".part", delete=False, encoding="utf-8") as part:
        part.write(f'{head},\n  "entries": [\n{lines}\n  ]\n}}\n')
    os.replace(part.name, path)  # noqa: PTH105
    tables.cache_clear()
    _lookup.cache_clear()
    return path


def slug(device: str) -> str:
    """Makes the name of a file: NVIDIA H100 80GB HBM3 → nvidia-h100-80gb-hbm3."""
    return re.sub(r"[^a-z0-9]+", "-", device.lower()).strip("-")


def _holds_for_all(entry: Entry, kernel: str, bits: int) -> bool:
    return entry["kernel"] == kernel and entry.get("bits", bits) >= bits and not {"D", "M", "C"} & entry.keys()
