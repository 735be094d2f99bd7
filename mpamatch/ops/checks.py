"""Checks of the operations' arguments: the error names the argument and what was expected. None looks at values."""

import torch
from torch import Tensor

IGNORE = 255
"""The label of pixels that count nowhere."""

MOST_PROTOTYPES = 3072
"""So many, C·K, fit into the shared memory of every GPU: csrc/cuda/device.h says the same, and its tests show it."""

_FARTHEST = 1 << 24  # elements from row to row, exclusive: the CUDA kernels count them in 32 bits
_FLOATS = (torch.float32, torch.float64, torch.float16, torch.bfloat16)
_INTEGERS = (torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64)


def is_floating(name: str, value: Tensor) -> None:
    """Raises TypeError unless the dtype is floating."""
    if value.dtype not in _FLOATS:
        raise TypeError(f"{name}: expected a floating dtype, got {value.dtype}.")


def is_integer(name: str, value: Tensor) -> None:
    """Raises TypeError unless the dtype is an integer's."""
    if value.dtype not in _INTEGERS:
        raise TypeError(f"{name}: expected an integer dtype, got {value.dtype}.")


def has_dtype(name: str, value: Tensor, *dtypes: torch.dtype) -> None:
    """Raises TypeError unless the dtype is one of `dtypes`."""
    if value.dtype not in dtypes:
        raise TypeError(f"{name}: expected {' or '.join(str(d) for d in dtypes)}, got {value.dtype}.")


def has_shape(name: str, value: Tensor, *shape: int | str) -> None:
    """Raises ValueError unless the shape is `shape`, in which a letter stands for any size: "B", 64, 64."""
    fits = value.dim() == len(shape) and all(
        isinstance(wanted, str) or wanted == size for wanted, size in zip(shape, value.shape, strict=False)
    )
    if not fits:
        raise ValueError(f"{name}: expected shape ({', '.join(map(str, shape))}), got {tuple(value.shape)}.")


def same_device(**tensors: Tensor | None) -> None:
    """Raises ValueError unless all tensors that are there lie on one device."""
    (first, reference), *others = ((name, t) for name, t in tensors.items() if t is not None)
    for name, tensor in others:
        if tensor.device != reference.device:
            raise ValueError(f"{name}: expected on {reference.device} as {first} is, got {tensor.device}.")


def pixels_and_prototypes(embedding: Tensor, prototypes: Tensor) -> tuple[int, int, int, int]:
    """Checks embedding (N, D) against prototypes (C, K, D) and returns N, C, K, D. Raises TypeError or ValueError."""
    is_floating("embedding", embedding)
    has_dtype("prototypes", prototypes, torch.float32, torch.float64)
    has_shape("embedding", embedding, "N", "D")
    has_shape("prototypes", prototypes, "C", "K", embedding.shape[1])
    classes, per_class, width = prototypes.shape
    if classes == 0 or per_class == 0 or width == 0:
        raise ValueError(
            f"prototypes: expected at least one class, prototype and channel, got {tuple(prototypes.shape)}."
        )
    same_device(embedding=embedding, prototypes=prototypes)
    return embedding.shape[0], classes, per_class, width


def pixel_weight(weight: Tensor | None, like: Tensor, *shape: int) -> Tensor:
    """Returns the weight in the dtype of `like`, ones of `shape` if it is None. Raises TypeError or ValueError."""
    if weight is None:
        return like.new_ones(shape)
    is_floating("weight", weight)
    has_shape("weight", weight, *shape)
    if weight.device != like.device:
        raise ValueError(f"weight: expected on {like.device}, got {weight.device}.")
    return weight.to(like.dtype)


def for_kernels(embedding: Tensor, prototypes: Tensor) -> tuple[Tensor, Tensor]:
    """Converts both as the fused kernels take them: float64 if one is, else prototypes float32; unit column stride."""
    if torch.float64 in (embedding.dtype, prototypes.dtype):
        embedding, prototypes = embedding.double(), prototypes.double()
    return rows(embedding), prototypes.contiguous()


def rows(embedding: Tensor) -> Tensor:
    """Makes the column stride of (N, D) 1; rows may lie apart, as in a wider table, but not 2²⁴ elements."""
    near = embedding.stride(1) == 1 and embedding.stride(0) < _FARTHEST
    return embedding if near else embedding.clone(memory_format=torch.contiguous_format)


def beyond_cuda(prototypes: Tensor) -> str | None:
    """Tells from the shape (C, K, D) why the CUDA kernels do not take so many prototypes; None if they do."""
    classes, per_class, width = prototypes.shape
    if classes * per_class > MOST_PROTOTYPES:
        return f"it takes at most {MOST_PROTOTYPES:,} prototypes"
    if width >= _FARTHEST or classes * per_class * width >= 1 << 31:
        return "it takes fewer than 2²⁴ channels, and fewer than 2³¹ numbers of all prototypes"
    return None


def index(value: Tensor) -> Tensor:
    """Makes an index contiguous, of a dtype that the fused kernels read: uint8, int32 or int64."""
    known = (torch.uint8, torch.int32, torch.int64)
    return (value if value.dtype in known else value.to(torch.int32)).contiguous()
