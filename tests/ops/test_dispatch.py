"""Which backend runs, and why not another: by tensors, by wish, by self-check."""

import os
import subprocess
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch._dynamo.testing import CompileCounterWithBackend

from mpamatch import ops
from mpamatch.errors import InputError
from mpamatch.ops import dispatch, native
from mpamatch.ops.operation import operations
from tests.ops.form import Form, forward_backward
from tests.ops.forms import FORMS, needs_extension

CPU = torch.zeros(1)
every_operation = pytest.mark.parametrize("operation", operations())


@pytest.fixture(autouse=True)
def fresh(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """No wish yet, no verdict yet; and none is left behind."""
    monkeypatch.delenv("MPAMATCH_BACKEND", raising=False)
    monkeypatch.setattr(dispatch, "_wanted", None)
    monkeypatch.setattr(dispatch, "_verdicts", {})
    dispatch.missing.cache_clear()
    yield
    dispatch.missing.cache_clear()


def _form_of(operation: str) -> Form:
    return next(form for form in FORMS if form.operation == operation)


def _decisive(operation: str) -> str:
    """The kernel that gives an operation its result: the last that returns something, but for the backward one."""
    return [name for name in operations()[operation].kernels if not name.endswith(("_backward", "_"))][-1]


def _spoil(monkeypatch: pytest.MonkeyPatch, name: str, wrong: Callable[..., Any]) -> None:
    """The native operation of this name gives wrong(its result)."""
    right = getattr(torch.ops.mpamatch, name)
    monkeypatch.setattr(torch.ops.mpamatch, name, lambda *given: wrong(right(*given)))


def _off(result: Any) -> Any:
    """Values moved by 1, or by a hundredth of the largest; in an order that no normalisation undoes."""
    if isinstance(result, tuple):
        return (_off(result[0]), *result[1:])
    return result + 1 if not result.is_floating_point() else result.flip(0) + 0.01 * result.abs().max()


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("", dispatch.AUTO),
        ("auto", dispatch.AUTO),
        (" , ", dispatch.AUTO),
        ("eager", ("eager",)),
        ("cpp", ("cpp",)),
        ("triton, cuda", ("triton", "cuda")),
        ("cuda,triton,cpp,eager", ("cuda", "triton", "cpp", "eager")),
    ],
)
def test_the_environment_is_read(monkeypatch: pytest.MonkeyPatch, text: str, names: tuple[str, ...]) -> None:
    monkeypatch.setenv("MPAMATCH_BACKEND", text)
    assert dispatch.wanted() == names
    monkeypatch.setenv("MPAMATCH_BACKEND", "eager")
    assert dispatch.wanted() == names  # read once


@pytest.mark.parametrize("text", ["gpu", "cpp,gpu", "CPP", "cpp eager", "auto,cpp"])
def test_a_wish_that_is_none_is_refused(monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    monkeypatch.setenv("MPAMATCH_BACKEND", text)
    with pytest.raises(InputError, match=r"MPAMATCH_BACKEND: .* is none of auto, cpp, triton, cuda, eager"):
        ops.pseudo_label(torch.zeros(1, 2, 1, 1))


@pytest.mark.slow
def test_a_wrong_wish_ends_a_command_with_one_sentence() -> None:
    command = [sys.executable, "-m", "mpamatch", "info", "--check"]
    wrong = os.environ | {"MPAMATCH_BACKEND": "cpp,gpu", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=wrong, capture_output=True, text=True, timeout=120)
    assert done.returncode == 2
    assert "MPAMATCH_BACKEND: 'gpu' is none of" in done.stderr
    assert "Traceback" not in done.stderr
    assert len(done.stderr.strip().splitlines()) <= 2


def test_using_holds_within_and_no_longer() -> None:
    before = dispatch.wanted()
    with dispatch.using("eager"):
        assert dispatch.choose("pseudo_label", CPU) == "eager"
        with dispatch.using("triton, eager"):
            assert dispatch.wanted() == ("triton", "eager")
        assert dispatch.wanted() == ("eager",)
        with pytest.raises(InputError):
            dispatch.using("nothing").__enter__()
    with pytest.raises(KeyError), dispatch.using("eager"):
        raise KeyError
    assert dispatch.wanted() == before


@every_operation
@needs_extension
def test_tensors_on_the_cpu_get_cpp(operation: str) -> None:
    assert dispatch.choose(operation, CPU) == dispatch.choose(operation, CPU.double()) == "cpp"
    with dispatch.using("cuda,eager,cpp"):
        assert dispatch.choose(operation, CPU) == "eager"
    with dispatch.using("triton,cuda,cpp"):
        assert dispatch.choose(operation, CPU) == "cpp"


@every_operation
def test_tensors_elsewhere_get_eager(operation: str) -> None:
    meta = torch.zeros(1, device="meta")
    assert dispatch.choose(operation, meta) == "eager"
    with (
        dispatch.using("cpp"),
        pytest.raises(RuntimeError, match=rf"{operation} on meta: .*cpp: not for tensors on meta"),
    ):
        dispatch.choose(operation, meta)


@every_operation
@pytest.mark.parametrize("name", ["triton", "cuda"])
def test_a_backend_asked_for_by_name_raises_with_its_reason(
    monkeypatch: pytest.MonkeyPatch, operation: str, name: str
) -> None:
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    reason = (
        "not for tensors on cpu" if name in operations()[operation].backends else "has cpp( and (cuda|triton))? only"
    )
    with (
        dispatch.using(name),
        pytest.raises(RuntimeError, match=rf"MPAMATCH_BACKEND={name} cannot run \({name}: .*{reason}"),
    ):
        dispatch.choose(operation, CPU)
    form = _form_of(operation)
    with dispatch.using(name), pytest.raises(RuntimeError, match=f"{operation} on cpu"):
        form.call(**form.inputs())


def test_all_reasons_are_told() -> None:
    with dispatch.using("triton,cuda"), pytest.raises(RuntimeError, match=r"triton: .*; cuda: "):
        dispatch.choose("sinkhorn_assign", CPU)


@every_operation
@needs_extension
def test_available_names_every_backend_with_its_reason(operation: str) -> None:
    found = dispatch.available(operation, "cpu")
    assert list(found) == [*operations()[operation].backends, "eager"]
    assert found["cpp"] is None
    assert found["eager"] is None
    assert all("not for tensors on cpu" in found[name] for name in operations()[operation].backends[1:])


@needs_extension
def test_prepare_checks_all_once(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = _count_checks(monkeypatch)
    assert dispatch.prepare("cpu") == dict.fromkeys(operations(), "cpp")
    assert sorted(asked) == sorted(operations())
    dispatch.prepare("cpu")
    for form in FORMS:
        forward_backward(form, form.inputs())
    assert len(asked) == len(operations())


def _count_checks(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    asked: list[str] = []
    run = dispatch._self_check

    def counted(operation: str, backend: str, device: str) -> str | None:
        asked.append(operation)
        return run(operation, backend, device)

    monkeypatch.setattr(dispatch, "_self_check", counted)
    return asked


def _nan(result: Any) -> Any:
    return (result[0] * torch.nan, *result[1:]) if isinstance(result, tuple) else _off(result)


def _raises(result: Any) -> Any:
    raise MemoryError("no room for the tile")


def _shorter(result: Any) -> Any:
    first = result[0] if isinstance(result, tuple) else result
    first = first[..., None] if first.dim() == 0 else first[..., :1]
    return (first, *result[1:]) if isinstance(result, tuple) else first


@needs_extension
@every_operation
@pytest.mark.parametrize("wrong", [_off, _nan, _raises, _shorter])
def test_a_kernel_that_is_wrong_is_set_aside_with_one_warning(
    monkeypatch: pytest.MonkeyPatch, operation: str, wrong: Callable[..., Any]
) -> None:
    form = _form_of(operation)
    inputs = form.inputs(seed=2)
    with dispatch.using("eager"):
        expected = forward_backward(form, inputs)
    _spoil(monkeypatch, _decisive(operation), wrong)
    with pytest.warns(RuntimeWarning, match=f"{operation}: the cpp kernel is set aside on cpu, .*eager") as caught:
        ours = forward_backward(form, inputs)
    assert len(caught) == 1
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        again = forward_backward(form, inputs)
    for name, value in expected.items():
        assert torch.equal(ours[name], value)
        assert torch.equal(again[name], value)
    assert "self-check" in str(dispatch.available(operation, "cpu")["cpp"])
    with dispatch.using("cpp"), pytest.raises(RuntimeError, match=f"{operation} on cpu: .*cpp: .*self-check"):
        form.call(**inputs)


@needs_extension
@pytest.mark.parametrize("operation", [name for name, record in operations().items() if record.differentiable])
def test_a_wrong_gradient_alone_is_found(monkeypatch: pytest.MonkeyPatch, operation: str) -> None:
    _spoil(monkeypatch, f"{operation}_backward", _off)
    with pytest.warns(RuntimeWarning, match="set aside"):
        assert dispatch.choose(operation, CPU) == "eager"


@needs_extension
def test_a_wrong_gradient_in_the_prototypes_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name, record in operations().items() if "prototypes" in record.differentiable]:
        _spoil(monkeypatch, f"{name}_backward", lambda both: (both[0], both[1] * 1.01))
        with pytest.warns(RuntimeWarning, match="set aside"):
            assert dispatch.choose(name, CPU) == "eager"


@needs_extension
@pytest.mark.parametrize("form", FORMS, ids=repr)
def test_no_self_check_in_a_compiled_graph(monkeypatch: pytest.MonkeyPatch, form: Form) -> None:
    """The first call of all is the compiled one: its graph holds the kernel and nothing of the check."""
    asked = _count_checks(monkeypatch)
    torch._dynamo.reset()
    counter = CompileCounterWithBackend("eager")
    compiled = torch.compile(form.call, fullgraph=True, backend=counter)
    inputs = form.inputs(seed=5)
    ours = compiled(**inputs)
    assert asked == [form.operation]
    assert counter.frame_count == 1
    targets = [str(node.target) for graph in counter.graphs for part in _parts(graph) for node in part.graph.nodes]
    native_calls = [target for target in targets if target.startswith("mpamatch.")]
    assert native_calls
    assert len(targets) < 60  # the check alone has hundreds
    for mine, expected in zip(ours, form.call(**inputs), strict=True):
        assert torch.equal(mine, expected)


def _parts(graph: torch.fx.GraphModule) -> list[torch.fx.GraphModule]:
    return [part for part in graph.modules() if isinstance(part, torch.fx.GraphModule)]


@pytest.mark.parametrize("mode", [torch.enable_grad, torch.no_grad, torch.inference_mode])
def test_the_check_runs_where_gradients_are_off(mode: Callable[[], Any]) -> None:
    """And leaves no trace, neither in the mode nor in the random numbers."""
    torch.manual_seed(3)
    state = torch.get_rng_state()
    with mode():
        before = torch.is_grad_enabled(), torch.is_inference_mode_enabled()
        found = dispatch.prepare("cpu")
        assert (torch.is_grad_enabled(), torch.is_inference_mode_enabled()) == before
    assert torch.equal(torch.get_rng_state(), state)
    assert set(found.values()) == {"cpp" if native.missing("cpu") is None else "eager"}


@needs_extension
def test_the_check_runs_under_autocast() -> None:
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert set(dispatch.prepare("cpu").values()) == {"cpp"}
        assert torch.is_autocast_enabled("cpu")


@needs_extension
def test_the_check_runs_under_another_default_dtype() -> None:
    torch.set_default_dtype(torch.float64)
    try:
        assert set(dispatch.prepare("cpu").values()) == {"cpp"}
    finally:
        torch.set_default_dtype(torch.float32)


def test_without_the_library_eager_runs_and_the_reason_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(native, "_MISSING", {"cpu": "it is not there", "cuda": "nor there"})
    assert dispatch.prepare("cpu") == dict.fromkeys(operations(), "eager")
    assert dispatch.available("sinkhorn_assign", "cpu") == {
        "cpp": "it is not there",
        "cuda": "not for tensors on cpu",
        "eager": None,
    }
    with dispatch.using("cpp"), pytest.raises(RuntimeError, match="cpp: it is not there"):
        ops.pseudo_label(torch.zeros(1, 2, 1, 1))


@needs_extension
def test_a_kernel_that_the_library_lacks_leaves_the_other_operations_theirs(monkeypatch: pytest.MonkeyPatch) -> None:
    record = operations()["pseudo_label"]
    newer = replace(record, kernels={**record.kernels, "pseudo_label_backward": lambda grad: grad})
    monkeypatch.setitem(operations(), "pseudo_label", newer)
    assert dispatch.prepare("cpu") == dict.fromkeys(operations(), "cpp") | {"pseudo_label": "eager"}
    reason = dispatch.available("pseudo_label", "cpu")["cpp"]
    assert reason == "mpamatch._C lacks pseudo_label_backward: build it again (make extension)"


PURE_PYTHON = """
import importlib.util, sys
find = importlib.util.find_spec
importlib.util.find_spec = lambda name, package=None: None if name == "mpamatch._C" else find(name, package)
from mpamatch.ops import dispatch, native
from tests.ops.form import forward_backward
from tests.ops.forms import FORMS
for form in FORMS:
    assert all(value.isfinite().all() for value in forward_backward(form, form.inputs()).values())
assert set(dispatch.prepare("cpu").values()) == {"eager"}
assert "mpamatch._C" not in sys.modules
print(native.missing("cpu"))
"""


@pytest.mark.slow
def test_a_pure_python_installation_works() -> None:
    environment = {name: value for name, value in os.environ.items() if name != "MPAMATCH_BACKEND"}
    command = [sys.executable, "-W", "error::RuntimeWarning", "-c", PURE_PYTHON]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert "pure Python" in done.stdout


def test_triton_launches_on_the_device_of_its_tensors(monkeypatch: pytest.MonkeyPatch) -> None:
    """Triton launches on the current device, which may be another one than that of the tensors."""
    current: list[torch.Tensor] = []

    @contextmanager
    def device_of(tensor: torch.Tensor) -> Iterator[None]:
        current.append(tensor)
        yield
        current.pop()

    monkeypatch.setattr(torch.cuda, "device_of", device_of)
    for name in ("forward", "backward"):
        module = SimpleNamespace(**{name: lambda *given: [*current]})
        monkeypatch.setattr(dispatch, "_modules", {"segmentation_loss": module})
        kernel = dispatch.kernel("segmentation_loss" if name == "forward" else "segmentation_loss_backward", "triton")
        assert kernel(None, CPU, torch.ones(2))[0] is CPU
        assert not current


def test_each_device_has_its_own_verdict(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two GPUs of a machine may be of different kinds."""
    checked: list[torch.device] = []

    def self_check(operation: str, backend: str, device: torch.device) -> str | None:
        checked.append(device)
        return "it differs" if device.index == 1 else None

    monkeypatch.setattr(dispatch, "_self_check", self_check)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    first, second = "cuda:0", "cuda:1"
    for _ in range(2):
        assert dispatch.failed("pseudo_label", "triton", first) is None
    with pytest.warns(RuntimeWarning, match="set aside on cuda:1, as it differs"):
        assert dispatch.failed("pseudo_label", "triton", second) == "it differs"
    assert dispatch.failed("pseudo_label", "triton", second) == "it differs"
    assert checked == [torch.device(first), torch.device(second)]
