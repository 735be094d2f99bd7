"""The base class of encoders of every family."""

from collections.abc import Iterable

from torch import Tensor, nn

from mpamatch.models.recompute import recomputed

Constants = tuple[float, float, float]  # one for each of R, G, B


class Encoder(nn.Module):
    """The base class of encoders: an image (B, 3, H, W) → a tuple of maps, shallow to deep.

    `forward(image)` takes H and W that are multiples of `multiple`; the last map is the one that a decoder begins with.

    Attributes:
        channels: C_i of each map (B, C_i, H / stride, W / stride).
        strides: of each map, in pixels of the image.
        multiple: what H and W must be multiples of.
        mean: of R, G and B in 0..1, which images are normalised by.
        std: as `mean`.
        checkpointing: whether backward computes activations again instead of keeping them.
    """

    channels: tuple[int, ...]
    strides: tuple[int, ...]
    multiple: int
    mean: Constants
    std: Constants
    checkpointing = False

    def recompute(self) -> None:
        """Switches to computing the blocks' activations again in backward instead of keeping them."""
        self.checkpointing = True

    def through(self, blocks: Iterable[nn.Module], x: Tensor) -> Tensor:
        """Runs one block after the other, with activation checkpointing if it is on.

        Args:
            blocks: modules without dropout.
            x: input of the first.

        Returns:
            Output of the last.
        """
        for block in blocks:
            x = recomputed(block, x) if self.checkpointing else block(x)
        return x
