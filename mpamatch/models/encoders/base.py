"""What every encoder is, whatever its family."""

from collections.abc import Iterable

from torch import Tensor, nn

from mpamatch.models.recompute import recomputed

Constants = tuple[float, float, float]  # one for each of R, G, B


class Encoder(nn.Module):
    """image (B,3,H,W), H and W multiples of `multiple` → tuple of maps, shallow to deep; the last feeds the decoder.

    `channels` and `strides` describe the maps; `mean` and `std` (RGB, images in 0..1) the normalisation it wants.
    """

    channels: tuple[int, ...]
    strides: tuple[int, ...]
    multiple: int
    mean: Constants
    std: Constants
    checkpointing = False

    def recompute(self) -> None:
        """From now on backward computes the blocks' activations again instead of keeping them."""
        self.checkpointing = True

    def through(self, blocks: Iterable[nn.Module], x: Tensor) -> Tensor:
        """x through one block after the other."""
        for block in blocks:
            x = recomputed(block, x) if self.checkpointing else block(x)
        return x
