"""Loading the native libraries: reasons instead of exceptions, and fakes that agree with the kernels."""

import inspect
import sysconfig

import pytest
import torch

from mpamatch.ops import native, source_hash

needs_extension = pytest.mark.skipif(native.missing("cpu") is not None, reason=str(native.missing("cpu")))
OPERATIONS = {
    "prototype_distance",
    "prototype_distance_backward",
    "prototype_contrast",
    "prototype_contrast_backward",
    "segmentation_loss",
    "segmentation_loss_backward",
    "pseudo_label",
    "signed_distance",
    "sinkhorn_score",
    "sinkhorn_step",
    "sinkhorn_pick",
    "prototype_sum",
    "prototype_move_",
}
N, D, C, K = 7, 5, 3, 2


def arguments(name: str, dtype: torch.dtype, weighted: bool, wanted: tuple[bool, bool]) -> tuple:
    """Valid arguments of an operation, small and random."""
    work = torch.float64 if dtype == torch.float64 else torch.float32
    embedding, prototypes = torch.randn(N, D).to(dtype), torch.randn(C, K, D, dtype=work)
    label = torch.tensor([0, 1, 2, 255, 1, 0, 2], dtype=torch.uint8)
    assignment = torch.tensor([0, 5, -1, 3, 2, 2, 1], dtype=torch.int32)
    weight = torch.rand(N, dtype=work) if weighted else None
    logits, pixel_label = torch.randn(2, C, 4, 3).to(dtype), torch.randint(0, C, (2, 4, 3))
    pixel_weight = torch.rand(2, 4, 3, dtype=work) if weighted else None
    one = torch.ones((), dtype=work)
    score, log_u = torch.randn(N, K, dtype=work), torch.randn(C, K, dtype=work)
    every = {
        "prototype_distance": (embedding, prototypes),
        "prototype_distance_backward": (
            *(torch.randn(N, C, dtype=work), embedding, prototypes),
            *(torch.rand(N, C, dtype=work), torch.randint(0, K, (N, C), dtype=torch.int32), *wanted),
        ),
        "prototype_contrast": (embedding, prototypes, assignment, weight, 0.1, True),
        "prototype_contrast_backward": (
            *(one, one, embedding, prototypes, assignment, weight, torch.randn(N, dtype=work), 0.1, False, *wanted),
        ),
        "segmentation_loss": (logits, pixel_label, pixel_weight),
        "segmentation_loss_backward": (one, torch.randn(3, C, dtype=work), logits, pixel_label, pixel_weight),
        "pseudo_label": (logits,),
        "signed_distance": (pixel_label.to(torch.uint8), C),
        "sinkhorn_score": (embedding, prototypes, label, 0.05, True),
        "sinkhorn_step": (score, label, log_u, log_u.exp(), True),
        "sinkhorn_pick": (score, label, log_u, log_u.exp()),
        "prototype_sum": (embedding, assignment, weight, C * K),
        "prototype_move_": (prototypes, torch.zeros(C, K, dtype=torch.int64), torch.randn(C * K, D, dtype=work), 0.9),
    }
    return every[name]


def test_every_operation_has_a_fake():
    assert set(native.FAKES) == OPERATIONS
    assert set(native.ON_CUDA) < OPERATIONS


@needs_extension
@pytest.mark.parametrize("name", sorted(OPERATIONS))
def test_a_fake_takes_what_the_schema_says(name):
    schema = getattr(torch.ops.mpamatch, name).default._schema
    assert list(inspect.signature(native.FAKES[name]).parameters) == [argument.name for argument in schema.arguments]


@needs_extension
@pytest.mark.parametrize("weighted", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("name", sorted(OPERATIONS))
def test_a_fake_agrees_with_the_kernel(name, dtype, weighted):
    """Shapes, dtypes and strides; and that the kernel changes and returns what its schema says."""
    for wanted in [(True, True), (True, False), (False, True)]:
        operation = getattr(torch.ops.mpamatch, name).default
        values = arguments(name, dtype, weighted, wanted)
        torch.library.opcheck(operation, values, test_utils=("test_schema", "test_faketensor"))


def test_pure_python_has_its_reason(monkeypatch):
    monkeypatch.setattr(native.importlib.util, "find_spec", lambda name: None)
    reason, information = native._load_cpu()
    assert str(reason).startswith("mpamatch was installed as pure Python")
    assert information == {}


def test_a_library_that_does_not_load_leaves_its_reason(monkeypatch):
    def fails(name):
        raise ImportError("undefined symbol: torch_call_dispatcher")

    monkeypatch.setattr(native.importlib.util, "find_spec", lambda name: object())
    monkeypatch.setattr(native.importlib, "import_module", fails)
    assert native._load_cpu() == ("mpamatch._C does not load: undefined symbol: torch_call_dispatcher", {})


@needs_extension
def test_a_stale_library_is_refused(monkeypatch):
    monkeypatch.setattr(source_hash, "of_cpu", lambda: "0123456789abcdef")
    reason, information = native._load_cpu()
    assert "_C was built from other sources than csrc/ holds now" in str(reason)
    assert information == native.build_information()


@needs_extension
def test_a_library_without_an_operation_is_refused(monkeypatch):
    monkeypatch.setitem(native.FAKES, "of_tomorrow", lambda label: None)
    assert native._load_cpu()[0] == "mpamatch._C lacks of_tomorrow: build it again (make extension)"


def test_cuda_kernels_that_are_not_there_have_their_reason(tmp_path, monkeypatch):
    monkeypatch.setattr(native, "PACKAGE", tmp_path)
    monkeypatch.setattr(torch.version, "cuda", None)
    assert "is a build without CUDA" in str(native._load_cuda(None, {}))
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    assert native._load_cuda("gone", {}) == "the CUDA kernels need mpamatch._C: gone"
    assert "without CUDA kernels" in str(native._load_cuda(None, {}))
    (tmp_path / f"_cuda{sysconfig.get_config_var('EXT_SUFFIX')}").write_bytes(b"no library")
    assert "does not load: " in str(native._load_cuda(None, {}))


def test_the_hash_sees_every_change(tmp_path, monkeypatch):
    (tmp_path / "core").mkdir()
    (tmp_path / "core" / "rows.h").write_text("a")
    (tmp_path / "module.cpp").write_text("b")
    monkeypatch.setattr(source_hash, "CSRC", tmp_path)
    seen = {source_hash.of_cpu()}
    (tmp_path / "core" / "rows.h").write_text("c")
    seen.add(source_hash.of_cpu())
    (tmp_path / "core" / "rows.h").rename(tmp_path / "core" / "row.h")
    seen.add(source_hash.of_cpu())
    (tmp_path / "core" / "new.h").touch()
    seen.add(source_hash.of_cpu())
    assert len(seen) == 4
    (tmp_path / "tests").mkdir()
    (tmp_path / "tests" / "test_rows.cpp").write_text("d")
    assert source_hash.of_cpu() in seen
