"""Every kernel at every entry of the tables, compiled to machine code with no GPU there: what the code costs.

The arguments are those of a launch on 65,536 pixels, on no device ("meta"): Triton specialises on them as it would.
"""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
import triton
from torch import Tensor

from mpamatch.kernels import compiled, prototype_contrast, prototype_distance, pseudo_label, segmentation_loss, tiles
from mpamatch.ops.operation import operations

PIXELS = 65536
LARGEST = {"D": 384, "M": 190, "C": 150}  # where an entry has no bound: more than one tile along each axis
DTYPES = {16: torch.bfloat16, 32: torch.float32}
KERNELS = Path(tiles.__file__).parent
OPERATIONS = {entry["kernel"].partition(".")[0] for table in tiles.tables().values() for entry in table.entries}
DIRECTIONS = {name: record.tiled for name, record in operations().items()}
PACKAGES = ["triton", "torch"]
TENSOR_CORES = {8: "HMMA", 9: "HGMMA", 10: "UTCHMMA"}  # the instruction, by the first number of the compute capability
compiles_kernels = pytest.mark.native(sources=[KERNELS], packages=PACKAGES)


def compiles(kernel: str, *settings: object) -> pytest.MarkDecorator:
    """The mark of a test that depends on these settings, and on all files of kernels/ but those of other operations."""
    others = OPERATIONS - {kernel.partition(".")[0]}
    sources = [path for path in sorted(KERNELS.glob("*.py")) if path.stem not in others]
    return pytest.mark.native(sources=sources, packages=PACKAGES, settings=settings)


@pytest.fixture(autouse=True)
def fresh_cache(tmp_path: Path) -> Iterator[None]:
    """Nothing that was compiled before is taken for what compiles now."""
    with triton.knobs.cache.scope():
        triton.knobs.cache.dir = str(tmp_path)
        yield


def empty(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.empty(shape, dtype=dtype, device="meta")


def call(kernel: str, dtype: torch.dtype, D: int, M: int, C: int) -> Callable[[], object]:
    """A call of the operation's direction with all it can be asked for."""
    per_class = 10 if M % 10 == 0 else 8
    classes = M // per_class
    embedding, prototypes = empty(PIXELS, D, dtype=dtype), empty(classes, per_class, D)
    of_class, nearest = empty(PIXELS, classes), empty(PIXELS, classes, dtype=torch.int32)
    assignment, weight = empty(PIXELS, dtype=torch.int32), empty(PIXELS)
    logits, label, of_map = empty(8, C, 128, 64, dtype=dtype), empty(8, 128, 64, dtype=torch.uint8), empty(8, 128, 64)
    planes = 1 if dtype == torch.float32 else 2
    packed = empty(planes, tiles.padded(M), tiles.padded(D), dtype=dtype)
    in_classes = empty(
        planes, tiles.padded(classes * prototype_distance.padded_class(per_class)), tiles.padded(D), dtype=dtype
    )
    contrast = (embedding, prototypes, assignment, weight)
    kept = (empty(), empty(), *contrast, weight, weight, packed, 0.1, False)
    distance = (of_class, embedding, prototypes, of_class, nearest, weight, in_classes)
    return {
        "prototype_distance.forward": lambda: prototype_distance.forward(embedding, prototypes),
        "prototype_distance.in_embedding": lambda: prototype_distance.in_embedding(*distance),
        "prototype_distance.in_prototypes": lambda: prototype_distance.in_prototypes(*distance),
        "prototype_contrast.forward": lambda: prototype_contrast.forward(*contrast, 0.1, False),
        "prototype_contrast.in_embedding": lambda: prototype_contrast.in_embedding(*kept),
        "prototype_contrast.in_prototypes": lambda: prototype_contrast.in_prototypes(*kept),
        "segmentation_loss.forward": lambda: segmentation_loss.forward(logits, label, of_map),
        "segmentation_loss.backward": lambda: segmentation_loss.backward(empty(), empty(3, C), logits, label, of_map),
        "pseudo_label.forward": lambda: pseudo_label.forward(logits),
    }[kernel]


def entries() -> Iterator[object]:
    """Every kernel and entry, once: tables that agree in a setting and compile for the same machine share it."""
    seen = set()
    for table in tiles.tables().values():
        for entry in table.entries:
            sizes = {name: min(entry.get(name, LARGEST[name]), LARGEST[name]) for name in LARGEST}
            setting = {name: value for name, value in entry["setting"].items() if name != "programs"}
            dtype = DTYPES[entry.get("bits", 16)]
            key = (table.device.capability, entry["kernel"], dtype, *sizes.values(), *setting.values())
            if key not in seen:
                seen.add(key)
                label = "-".join([table.device.name, entry["kernel"], str(dtype)[6:], *map(str, key[3:6])])
                mark = compiles(entry["kernel"], table.device, entry)
                yield pytest.param(table, entry, dtype, sizes, id=label, marks=mark)


@pytest.mark.parametrize(("table", "entry", "dtype", "sizes"), entries())
def test_cost(table: tiles.Table, entry: tiles.Entry, dtype: torch.dtype, sizes: dict[str, int]) -> None:
    with tiles.using(entry["kernel"], entry["setting"]):
        costs = compiled.costs(call(entry["kernel"], dtype, **sizes), table.device)
    assert costs
    for cost in costs:
        assert cost.local_memory == 0, cost
        assert not cost.instructions["STL"] + cost.instructions["LDL"], cost
        assert cost.shared_memory <= table.device.shared_memory, cost
        assert 0 < cost.registers <= 255, cost
        assert not cost.instructions["ATOM"] + cost.instructions["ATOMG"] + cost.instructions["RED"], cost
    if entry["kernel"].startswith("prototype") and dtype == torch.bfloat16:
        main = [cost for cost in costs if cost.kernel == f"{entry['kernel'].partition('.')[2]}_kernel"]
        assert main
        assert all(cost.instructions[TENSOR_CORES[table.device.capability[0]]] for cost in main)


@compiles_kernels
@pytest.mark.parametrize("kernel", ["prototype_distance.in_prototypes", "prototype_contrast.in_prototypes"])
def test_float16(kernel: str) -> None:
    """As bfloat16 but for the scaling in `add_to_prototypes`: at the commonest size, on each kind of device."""
    for table in {table.device.capability: table for table in tiles.tables().values()}.values():
        for cost in compiled.costs(call(kernel, torch.float16, 256, 50, 2), table.device):
            assert cost.local_memory == 0, cost
            assert cost.shared_memory <= table.device.shared_memory, cost


@compiles_kernels
def test_alignment_is_that_of_the_call() -> None:
    """Rows that begin at any multiple of 2 bytes are loaded one number at a time, aligned ones 8 at a time."""
    table = tiles.tables()["sm_80"]
    loads = []
    for stride in (64, 65):
        embedding = empty(PIXELS, stride, dtype=torch.bfloat16)[:, :64]
        costs = compiled.costs(lambda x=embedding: prototype_distance.forward(x, empty(2, 8, 64)), table.device)
        loads.append(costs[-1].instructions["LDG"] + costs[-1].instructions["LDGSTS"])
    assert loads[1] > 2 * loads[0]


@compiles_kernels
def test_a_spill_shows() -> None:
    """The check is able to fail: this tile needs more registers than there are."""
    table = tiles.tables()["sm_80"]
    huge = {"BLOCK_P": 128, "num_warps": 1, "num_stages": 2, "programs": 8}
    with tiles.using("segmentation_loss.forward", huge):
        costs = compiled.costs(call("segmentation_loss.forward", torch.float32, 64, 50, 20), table.device)
    assert costs[0].local_memory > 0
    assert costs[0].instructions["STL"] > 0


@compiles_kernels
@pytest.mark.parametrize("classes", [150, 4000])
@pytest.mark.parametrize("direction", ["in_embedding", "in_prototypes"])
def test_many_classes_spill_nothing(classes: int, direction: str) -> None:
    """However many there are, a pixel's gradients in them go by in tiles."""
    table = tiles.tables()["sm_90"]
    of_class, of_pixel = empty(PIXELS, classes), empty(PIXELS)
    packed = empty(2, tiles.padded(classes), tiles.padded(256), dtype=torch.bfloat16)
    embedding, prototypes = empty(PIXELS, 256, dtype=torch.bfloat16), empty(classes, 1, 256)
    nearest = empty(PIXELS, classes, dtype=torch.int32)
    given = (of_class, embedding, prototypes, of_class, nearest, of_pixel, packed)
    for cost in compiled.costs(lambda: getattr(prototype_distance, direction)(*given), table.device):
        assert cost.local_memory == 0, cost


@compiles_kernels
@pytest.mark.parametrize(
    "kernel", [name for operation in ("prototype_distance", "prototype_contrast") for name in DIRECTIONS[operation]]
)
def test_another_number_of_pixels_compiles_nothing(kernel: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also 1, and one that is no multiple of 16."""
    main = f"{kernel.partition('.')[2]}_kernel"
    found = set()
    for pixels in (65536, 65537, 1):
        monkeypatch.setattr(f"{__name__}.PIXELS", pixels)
        with compiled._recorded(tiles.tables()["sm_90"].device) as kernels:
            call(kernel, torch.bfloat16, 256, 50, 2)()
        found |= {one.kernel.hash for one in kernels if one.kernel.name == main}
    assert len(found) == 1
