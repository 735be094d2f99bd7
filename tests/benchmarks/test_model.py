"""The cost model: kernels bound by one thing, the work it reads from machine code, the tables it prints."""

from collections import Counter
from dataclasses import replace

import pytest

pytest.importorskip("triton")
from mpamatch.benchmarks import launches, model, predict
from mpamatch.benchmarks.all import BENCHMARKS
from mpamatch.benchmarks.cards import CARDS, Card, card_of
from mpamatch.benchmarks.cases import BOTH, FORWARD, Case
from mpamatch.benchmarks.model import Launch
from mpamatch.kernels.compiled import Cost, Part, parts_of

H100 = next(card for card in CARDS if card.name == "H100")
START = model.LAUNCH + model.MEMORY_LATENCY
# One program for each multiprocessor, of 16 warps, that does nothing.
IDLE = Launch("idle", H100.processors, 16, 32, 0, memory=0, turns=0, ahead=True)
LARGE = Case("prototype_contrast", BOTH, 65_536, 256, 5, 10, "bfloat16", bytes=100)


def whole(amount: float) -> float:
    """So much of one program, in cycles of a whole launch: seconds."""
    return amount / H100.clock


@pytest.mark.parametrize(
    ("work", "bound", "seconds"),
    [
        ({"memory": 3.35e9}, "memory", 1e-3 / model.MEMORY_SHARE),
        ({"loaded": 5.7e9 / 132}, "L2", 1e-3),
        ({"instructions": 4e6}, "instructions", whole(1e6)),
        ({"tensor": 2048e6}, "tensor cores", whole(1e6) / model.TENSOR_SHARE),
        ({"shared": 128e6}, "shared memory", whole(1e6)),
        ({"turns": 1000, "ahead": False, "memory": 1e6}, "one after the other", 1000 * model.MEMORY_LATENCY),
        ({"barriers": 100}, "memory", 100 * model.BARRIER),
    ],
    ids=lambda value: "+".join(value) if isinstance(value, dict) else None,
)
def test_a_kernel_that_one_thing_binds(work, bound, seconds):
    """Takes the time of that thing alone, by the data sheet and the assumptions."""
    found = model.predict(replace(IDLE, **work), H100)
    assert found.seconds - START == pytest.approx(seconds, rel=2e-2, abs=0.5e-6)
    assert "barriers" in work or found.bound == bound


def test_programs_on_a_multiprocessor_overlap():
    """Half tensor cores, half instructions: one program takes both, two beside each other the larger."""
    alone = replace(IDLE, instructions=4e6, tensor=2048e6 * model.TENSOR_SHARE, shared_memory=200_000)
    halves = replace(
        alone, programs=2 * alone.programs, instructions=2e6, tensor=1024e6 * model.TENSOR_SHARE, shared_memory=100_000
    )
    assert model.predict(alone, H100).seconds == pytest.approx(START + whole(2e6), rel=1e-3)
    assert model.predict(halves, H100).seconds == pytest.approx(START + whole(1e6), rel=1e-3)


@pytest.mark.parametrize(
    ("launch", "resident"),
    [
        (IDLE, 4),  # 64 warps
        (replace(IDLE, warps=4, registers=255), 2),  # 65,536 registers, 256 a thread
        (replace(IDLE, warps=4, shared_memory=112 * 1024), 2),  # 228 KB, one beside each for the driver
        (replace(IDLE, warps=4, shared_memory=113 * 1024 + 1), 1),
        (replace(IDLE, warps=1), 32),
    ],
)
def test_how_many_programs_a_multiprocessor_holds(launch, resident):
    assert model.resident_programs(launch, H100) == resident


def test_what_does_not_fit_is_refused():
    with pytest.raises(ValueError, match=r"idle: no program fits on a multiprocessor of H100\."):
        model.predict(replace(IDLE, shared_memory=228 * 1024), H100)


CODE = """
        /*0000*/                   MOV R1, c[0x0][0x28] ;
.L_x_1:
        /*0010*/                   LDG.E.128 R4, [R2.64] ;
.L_x_2:
        /*0020*/              @!P0 HMMA.16816.F32.BF16 R8, R4, R6, R8 ;
        /*0030*/               @P1 BRA `(.L_x_2) ;
        /*0040*/                   STG.E.64 [R2.64], R8 ;
        /*0050*/               @P2 BRA `(.L_x_1) ;
        /*0060*/                   EXIT ;
.L_x_3:
        /*0070*/                   BRA `(.L_x_3);
"""


def test_loops_are_read_from_a_disassembly():
    straight, outer, inner = parts_of(CODE)
    assert straight == Part((), Counter({"MOV": 1, "EXIT": 1, "BRA": 1}))
    assert outer == Part((0,), Counter({"LDG.E.128": 1, "STG.E.64": 1, "BRA": 1}))
    assert inner == Part((0, 1), Counter({"HMMA.16816.F32.BF16": 1, "BRA": 1}))


def test_the_work_of_a_program_follows_from_code_and_arguments():
    """1,000 rows in tiles of 16 over 4 programs: 16 turns of the outer loop, in each 3 of the inner."""
    arguments = {"N": 1000, "BLOCK_N": 16, "M_PARTS": 3, "D_PARTS": 1, "RESIDENT": False, "KEEP": False}
    cost = Cost("forward_kernel", 64, 0, 1024, Counter(), parts_of(CODE), 2, (4,), arguments, "prototype_contrast")
    found = model.launch_of(cost)
    assert found.turns == 16
    assert found.instructions == 2 * (3 + 16 * 3 + 16 * 3 * 2)
    assert found.tensor == 2 * 16 * 3 * 2048
    assert found.loaded == 2 * 32 * 16 * (16 + 8)
    assert not found.ahead


@pytest.mark.parametrize(
    ("mnemonic", "warps", "amount"),
    [
        ("HMMA.16816.F32.BF16", 4, 4 * 2048),
        ("HMMA.1688.F32.TF32", 4, 2 * 4 * 1024),
        ("HGMMA.64x64x16.F32.BF16", 8, 2 * 65536),
        ("HGMMA.64x32x8.F32.TF32", 4, 2 * 16384),
        ("FFMA", 4, 0),
    ],
)
def test_multiply_adds_of_an_instruction(mnemonic, warps, amount):
    assert model.multiply_adds(mnemonic, warps) == amount


def test_a_card_by_its_name_or_its_kind():
    assert card_of("NVIDIA H200", (9, 0), 132).name == "H200"
    assert card_of("NVIDIA H100 80GB HBM3", (9, 0), 132) == H100
    assert card_of("NVIDIA H100 PCIe", (9, 0), 114).processors == 114
    assert card_of("NVIDIA GH200", (9, 0), 132).capability == (9, 0)
    assert card_of("NVIDIA A10G", (8, 6), 80) is None


@pytest.mark.slow
@pytest.mark.parametrize("card", [card for card in CARDS if card.name in ("A100", "H100")], ids=lambda card: card.name)
@pytest.mark.parametrize("classes", [2, 5, 19])
def test_tensor_cores_do_the_products_and_no_more(card: Card, classes: int):
    """The turns that are taken from the source and the instructions in the loops agree: multiplied they are the
    products of all pixels, padded prototypes and channels, two for two planes of prototypes, one for the gradient."""
    case = replace(LARGE, c=classes)
    tiles_of_m = {launch.kernel: launch for launch in launches.launches(case, card)}
    rows = 65_536 * 256
    for kernel, products in (("forward_kernel", 2), ("in_embedding_kernel", 4), ("in_prototypes_kernel", 3)):
        launch = tiles_of_m[kernel]
        done = launch.tensor * launch.programs / rows / products
        assert done >= case.m, kernel
        if case.m == 50 and card.name == "H100":
            assert done <= 64 * 1.04, kernel  # 64 rows, and a last turn that not all programs have


@pytest.mark.slow
def test_no_product_is_beyond_what_the_card_does():
    """No prediction is better than the floor, and each says what bounds it."""
    for benchmark in BENCHMARKS:
        for case in benchmark.cases("small", "cuda", "bfloat16"):
            found = predict.predicted(case, H100)
            if found is None:
                assert benchmark.operation == "signed_distance"
                continue
            assert 0 < found.share < 1, case
            assert found.seconds >= len(found.launches) * model.LAUNCH
            assert all(part.bound in part.parts for part in found.parts)


@pytest.mark.slow
def test_the_tables(capsys, monkeypatch):
    monkeypatch.setattr("sys.argv", ["predict", "--op", "pseudo_label,sinkhorn_assign", "--card", "L4"])
    assert predict.main() == 0
    printed = capsys.readouterr().out
    assert "Predicted, not measured" in printed
    assert "| pseudo_label | N=524288 C=5 | forward |" in printed
    assert "| sinkhorn_assign, M 50 | sinkhorn_assign | 116 | 2 | 128 |" in printed


def test_rows_of_a_gpu_carry_the_prediction(monkeypatch):
    """A time of the fused backend has what the model says of the card at hand beside it."""
    from types import SimpleNamespace

    import torch

    from mpamatch.benchmarks import suite

    properties = SimpleNamespace(name="NVIDIA H100 80GB HBM3", major=9, minor=0, multi_processor_count=132)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: properties)
    case = Case("sinkhorn_assign", FORWARD, 65_536, 256, 5, 10, "bfloat16", bytes=1)
    assert suite.prediction(case) == predict.predicted(case, H100).seconds
    assert suite.prediction(replace(case, operation="signed_distance")) is None
