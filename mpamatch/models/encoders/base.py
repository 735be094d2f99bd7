"""The base class of encoders of every family."""

from collections.abc import Iterable, Mapping, Sequence

from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from mpamatch.errors import InputError
from mpamatch.models.encoders.preset import Constants, Preset
from mpamatch.models.recompute import recomputed
from mpamatch.models.weights import load_checked, without_classifier


class Encoder(nn.Module):
    """The base class of encoders: an image (B, 3, H, W) → a tuple of maps, shallow to deep.

    `forward(image)` takes H and W that are multiples of `multiple`; the last map is the one that a decoder begins with.

    Attributes:
        preset: what it was built from, which its checkpoints hold.
        channels: C_i of each map (B, C_i, H / stride, W / stride).
        strides: of each map, in pixels of the image.
        between: of a ViT with intermediate maps, all at one stride: stride of a decoder's block → index of the map that
            it takes, resized; None: a block takes the map of its own stride.
        multiple: what H and W must be multiples of.
        checkpointing: whether backward computes activations again instead of keeping them.
    """

    preset: Preset
    channels: tuple[int, ...]
    strides: tuple[int, ...]
    multiple: int
    between: Mapping[int, int] | None = None
    checkpointing = False

    @property
    def mean(self) -> Constants:
        """Of R, G and B in 0..1, which images are normalised by."""
        return self.preset.mean

    @property
    def std(self) -> Constants:
        """As `mean`."""
        return self.preset.std

    @property
    def backbone(self) -> nn.Module:
        """The module whose names published weights have; the encoder itself unless overridden."""
        return self

    def norms(self) -> list[_BatchNorm]:
        """Lists its batch norms.

        Returns:
            The modules, in order.
        """
        return [module for module in self.modules() if isinstance(module, _BatchNorm)]

    def layers_by_map(self) -> list[list[nn.Module]]:
        """Lists the modules with parameters that compute each map from the one before.

        Returns:
            A list for each map, shallow to deep; no list at all if its layers cannot be told apart.
        """
        return []

    def load(self, state: Mapping[str, Tensor], source: str) -> None:
        """Loads published weights strictly.

        Args:
            state: tensors under the publisher's names, with or without a classifier.
            source: where they came from, for messages.

        Raises:
            InputError: names or shapes do not fit; it holds the first differences.
        """
        load_checked(self.backbone, without_classifier(state), source)

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


def between(skips: int) -> dict[int, int] | None:
    """Returns which decoder block, by its stride, takes which of a ViT's intermediate maps; None if there are none.

    The deepest goes to the block at stride 8, the one before to stride 4, then 2.
    """
    return dict(zip((8, 4, 2), reversed(range(skips)), strict=False)) if skips else None


def check_skips(preset: Preset, skips: Sequence[int], blocks: int) -> None:
    """Raises InputError unless `skips` are blocks of a ViT of `blocks` blocks, before its last, in rising order."""
    if list(skips) != sorted(set(skips)) or any(not 0 <= skip < blocks - 1 for skip in skips):
        raise InputError(
            f"model.skips: expected blocks of {preset.name} in rising order, from 0 to {blocks - 2}, got {list(skips)}."
        )
