"""Which share of a step's forward and backward lies inside encoder and decoder, from the profiler."""

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn
from torch.autograd.profiler_util import FunctionEvent
from torch.profiler import record_function

from mpamatch.methods import Method

INSIDE = "benchmark::encoder_or_decoder"
BACKWARD = "autograd::engine::evaluate_function: "


@contextmanager
def marked(method: Method) -> Iterator[None]:
    """Every call of the encoder and the decoder runs within a range that the profiler sees."""
    open_ranges: list[record_function] = []

    def enter(module: nn.Module, arguments: object) -> None:
        open_ranges.append(record_function(INSIDE))
        open_ranges[-1].__enter__()

    def leave(module: nn.Module, arguments: object, result: object) -> None:
        open_ranges.pop().__exit__(None, None, None)

    parts = (method.model.encoder, method.model.decoder)
    hooks = [hook for part in parts for hook in _hooks(part, enter, leave)]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def _hooks(part, enter, leave):
    return part.register_forward_pre_hook(enter), part.register_forward_hook(leave)


def inside_seconds(events: list[FunctionEvent]) -> tuple[float, float]:
    """(seconds inside encoder and decoder, seconds in all), forward and backward together.

    Forward: the marked ranges. Backward: a node of the graph bears the sequence number that its forward operation was
    given; numbers are given in order, so the last operation that starts with a number is the one that made the node.
    A node belongs inside where that operation started within a marked range, and so do the accumulations of gradients
    that directly follow it.
    """
    whole = sum(_seconds(e) for e in events if e.name in ("benchmark::forward", "benchmark::backward"))
    ranges = sorted((e.time_range.start, e.time_range.end) for e in events if e.name == INSIDE)
    forward = sum(end - start for start, end in ranges) / 1e6
    nodes = sorted((e for e in events if e.name.startswith(BACKWARD)), key=lambda e: e.time_range.start)
    began = nodes[0].time_range.start
    made_at: dict[int, float] = {}
    for event in events:
        if event.sequence_nr >= 0 and event.time_range.start < began:
            made_at[event.sequence_nr] = max(event.time_range.start, made_at.get(event.sequence_nr, 0.0))
    backward, inside = 0.0, False
    for node in nodes:
        if "AccumulateGrad" not in node.name:
            at = made_at.get(node.sequence_nr, -1.0)
            inside = any(start <= at <= end for start, end in ranges)
        backward += _seconds(node) if inside else 0.0
    return forward + backward, whole


def _seconds(event: FunctionEvent) -> float:
    return (event.time_range.end - event.time_range.start) / 1e6
