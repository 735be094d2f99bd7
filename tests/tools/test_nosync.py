"""The no-sync check catches what stalls a GPU and lets an ordinary training step through."""

from collections.abc import Callable
from typing import NamedTuple

import pytest
import torch
from torch import Tensor, nn

from tests.tools.nosync import HostSync, assert_no_sync


def _item(x: Tensor) -> None:
    (x * x.sum().item()).sum()


def _item_of_a_constant(x: Tensor) -> None:
    (x * torch.tensor(3.0).item()).sum()


def _truth_value(x: Tensor) -> None:
    if (x > 0).any():
        x.sum()


def _float(x: Tensor) -> None:
    float(x.sum())


def _mask_read(x: Tensor) -> None:
    x[x > 0].sum()


def _byte_mask_read(x: Tensor) -> None:
    x[(x > 0).to(torch.uint8)].sum()


def _mask_write(x: Tensor) -> None:
    x = x.clone()
    x[x > 0] = 0.0


def _mask_write_of_a_tensor(x: Tensor) -> None:
    torch.index_put(x, (x > 0,), torch.zeros(()))


def _mask_of_one_axis_among_two(x: Tensor) -> None:
    x[:, x[0] > 0].sum()


def _nonzero(x: Tensor) -> None:
    x.nonzero()


def _where_as_nonzero(x: Tensor) -> None:
    torch.where(x > 0)


def _masked_select(x: Tensor) -> None:
    torch.masked_select(x, x > 0)


def _unique(x: Tensor) -> None:
    torch.unique(x)


def _bincount(x: Tensor) -> None:
    torch.bincount(x.long().flatten())


def _tolist(x: Tensor) -> None:
    x.tolist()


def _equal(x: Tensor) -> None:
    torch.equal(x, x + 1)


def _index_by_a_scalar_tensor(x: Tensor) -> None:
    x[x.sum().long()]


def _cpu(x: Tensor) -> None:
    x.sum().cpu()


def _numpy(x: Tensor) -> None:
    x.detach().numpy()


def _to_a_named_device(x: Tensor) -> None:
    x.to("cpu")


def _copy_to_another_device(x: Tensor) -> None:
    x.to(torch.device("cuda"))


def _copy_into_another_device(x: Tensor) -> None:
    torch.empty_like(x, device=torch.device("cuda")).copy_(x)


def _number_to_the_device(x: Tensor) -> None:
    x * torch.tensor(0.5, device=x.device)


def _new_tensor(x: Tensor) -> None:
    x * x.new_tensor([1.0, 2.0, 3.0, 4.0])


class _AsksInBackward(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return x.sum()

    @staticmethod
    def backward(ctx, grad: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        return grad * x.max().item() + torch.zeros_like(x)


def _item_in_backward(x: Tensor) -> None:
    _AsksInBackward.apply(x.clone().requires_grad_()).backward()


@pytest.mark.parametrize(
    "function",
    [
        _item,
        _item_of_a_constant,
        _truth_value,
        _float,
        _mask_read,
        _byte_mask_read,
        _mask_write,
        _mask_write_of_a_tensor,
        _mask_of_one_axis_among_two,
        _nonzero,
        _where_as_nonzero,
        _masked_select,
        _unique,
        _bincount,
        _tolist,
        _equal,
        _index_by_a_scalar_tensor,
        _cpu,
        _numpy,
        _to_a_named_device,
        _copy_to_another_device,
        _copy_into_another_device,
        _number_to_the_device,
        _new_tensor,
        _item_in_backward,
    ],
)
def test_a_sync_is_caught(function: Callable[[Tensor], None]) -> None:
    with pytest.raises(HostSync):
        assert_no_sync(function, torch.randn(3, 4))


class _Views(NamedTuple):
    weak: Tensor
    strong: tuple[Tensor, Tensor]


class _Batch(NamedTuple):
    image: Tensor
    label: Tensor
    unlabelled: _Views


class _Net(nn.Module):
    """Parameters, a tied parameter, buffers with an in-place update, dropout, batch norm, convolution."""

    memory: Tensor

    def __init__(self, asks: bool = False) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(), nn.Dropout2d())
        self.head = nn.Conv2d(4, 2, 1)
        self.tied = nn.Conv2d(4, 2, 1)
        self.tied.weight = self.head.weight
        self.register_buffer("memory", torch.zeros(2))
        self.asks = asks

    def forward(self, batch: _Batch, step: Tensor) -> dict[str, Tensor]:
        logits = self.head(self.body(batch.image))
        confidence, pseudo = self.tied(self.body(batch.unlabelled.weak)).softmax(1).max(1)
        self.memory.mul_(0.9).add_(logits.detach().mean((0, 2, 3)), alpha=0.1)
        weight = torch.where(confidence >= 0.6, 1.0, 0.0) * (step > 3)
        loss = nn.functional.cross_entropy(logits, batch.label, ignore_index=255)
        for strong in batch.unlabelled.strong:
            terms = nn.functional.cross_entropy(self.head(self.body(strong)), pseudo, reduction="none")
            loss = loss + (terms * weight).mean()
        if self.asks and loss > 100:
            loss = loss * 0
        return {"loss": loss}


def _training_step(net: _Net, batch: _Batch, step: Tensor) -> None:
    loss = net(batch, step)["loss"]
    loss.backward()
    torch.nn.utils.clip_grad_norm_(net.parameters(), 1.0)
    assert net.tied.weight is net.head.weight
    assert net.head.weight.grad is not None


def _batch() -> _Batch:
    image = torch.randn(2, 3, 8, 8)
    return _Batch(image, torch.randint(0, 2, (2, 8, 8)), _Views(image, (image, image)))


def test_an_ordinary_training_step_passes_and_leaves_the_module_alone() -> None:
    net = _Net()
    before = {name: value.clone() for name, value in net.state_dict().items()}
    assert_no_sync(_training_step, net, _batch(), torch.tensor(5))
    assert_no_sync(net, _batch(), torch.tensor(5))
    assert all(parameter.grad is None for parameter in net.parameters())
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())


def test_a_training_step_that_asks_is_caught() -> None:
    with pytest.raises(HostSync):
        assert_no_sync(_training_step, _Net(asks=True), _batch(), torch.tensor(5))


def _refuses(x: Tensor) -> None:
    raise ValueError("x is not to my taste")


def test_a_failure_of_the_function_itself_is_no_sync() -> None:
    with pytest.raises(ValueError, match="x is not to my taste"):
        assert_no_sync(_refuses, torch.zeros(3))
