"""Loading the native libraries: reasons instead of exceptions, and fakes that agree with the kernels."""

import inspect
import sysconfig
from pathlib import Path

import pytest
import torch

from mpamatch.ops import native, source_hash
from mpamatch.ops.operation import operations
from tests.ops.forms import KERNELS, arguments, needs_extension

FAKES = {name: fake for operation in operations().values() for name, fake in operation.kernels.items()}


@needs_extension
def test_every_schema_belongs_to_an_operation_and_has_its_fake():
    schemas = {name for name in torch._C._dispatch_get_all_op_names() if name.startswith("mpamatch::")}
    assert schemas == {f"mpamatch::{name}" for name in FAKES}


@needs_extension
@pytest.mark.parametrize("name", KERNELS)
def test_a_fake_takes_what_the_schema_says(name):
    schema = getattr(torch.ops.mpamatch, name).default._schema
    assert list(inspect.signature(FAKES[name]).parameters) == [argument.name for argument in schema.arguments]


@needs_extension
@pytest.mark.parametrize("weighted", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("name", KERNELS)
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
    sources = Path(__file__).parents[2] / "csrc"  # an installed package has none beside it
    monkeypatch.setattr(source_hash, "CSRC", sources)
    monkeypatch.setattr(source_hash, "of_cpu", lambda: "0123456789abcdef")
    reason, information = native._load_cpu()
    assert "_C was built from other sources than csrc/ holds now" in str(reason)
    assert information == native.build_information()


@needs_extension
def test_a_library_without_a_kernel_is_refused_for_it():
    reason = "mpamatch._C lacks of_tomorrow: build it again (make extension)"
    assert native.missing("cpu", ["pseudo_label", "of_tomorrow"]) == reason
    native.register_fakes({"of_tomorrow": lambda label: None})  # nothing to register it with


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
