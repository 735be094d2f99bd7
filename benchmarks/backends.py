"""The fused backends of an operation, as the benchmarks see them."""

from mpamatch.ops import dispatch

EAGER = "eager"
OF_DEVICE = {"cpu": ("cpp",), "cuda": ("triton", "cuda")}
FUSED = ("cpp", "triton", "cuda")

using = dispatch.using


def fused(operation: str, device: str) -> dict[str, str | None]:
    """Backend → None where it can run `operation` on `device`, else the reason. Operations may be joined with a +."""
    found: dict[str, str | None] = {}
    for part in operation.split("+"):
        for backend, reason in dispatch.available(part, device).items():
            if backend in OF_DEVICE[device]:
                found[backend] = found.get(backend) or reason
    return found
