"""LPD (arXiv 2512.05922): weakly supervised, from image-level labels; learnable prototypes kept diverse."""

from typing import Any, Literal, cast

import torch
from torch import Tensor
from torch.nn import functional
from torch.nn.functional import one_hot

from mpamatch.batch import Batch
from mpamatch.errors import InputError
from mpamatch.methods.base import METHODS, Method
from mpamatch.methods.losses import over_ranks, weighted_mean
from mpamatch.methods.towers import IMAGE, ImageSettings
from mpamatch.models.image_encoder import ImageEncoder
from mpamatch.models.network import Network
from mpamatch.models.prototype_maps import MapDecoder, PrototypeMaps, normalised
from mpamatch.models.prototypes import mean_cosines
from mpamatch.models.towers import BesideTower
from mpamatch.ops.unit import unit, working
from mpamatch.ranks import all_ranks
from mpamatch.settings import NonNegative, Positive, Whole, settings

NEVER = -1e30  # a logit that adds nothing to a sum of exponentials and leaves it finite
BARE = 0.2  # a pixel whose class maps are all below it belongs to no class (public code)


@settings("method")
class LPDConfig(ImageSettings):
    """Settings of LPD; what the paper leaves open is an assumption with the default given here (docs/METHODS.md).

    Attributes:
        start: step at which contrast and diversity begin, once the maps are better than random.
        temperature: of the contrast.
        weight_contrast: of the contrast and the area.
        weight_area: of the area that the maps cut out, beside the contrast.
        diversity_temperature: of the softmax over pixels whose divergence keeps prototypes apart.
        diversity_pixels: which pixels that softmax runs over: all, for the classes that the image shows; or own, those
            where a class's map is the highest (public code), so that a class without such a pixel has no term.
        diversity_prototypes: what the pixels are compared with: projected, the prototypes in the channels of the
            deepest map; or raw, themselves (public code), which must be as wide as that map.
        weight_diversity: of the diversity loss.
    """

    name: Literal["lpd"] = "lpd"
    start: Whole = 3000
    temperature: Positive = 0.07
    weight_contrast: NonNegative = 0.1
    weight_area: NonNegative = 0.0005
    diversity_temperature: Positive = 0.07
    diversity_pixels: Literal["all", "own"] = "all"
    diversity_prototypes: Literal["projected", "raw"] = "projected"
    weight_diversity: NonNegative = 0.5


@METHODS.register
class LPD(BesideTower, Method):
    """LPD (arXiv 2512.05922): loss .1·BCE₂ + BCE₃ + BCE₄, from `start` on also
    weight_contrast·(L_FG + L_BG + weight_area·area) + weight_diversity·L_div.

    The weights of the scales are model.map_weights. Raises InputError if the prototypes have another size than the
    frozen encoder's vectors, or, raw in L_div, than the deepest map.
    """

    name = "lpd"
    configuration = LPDConfig
    model: PrototypeMaps
    config: LPDConfig
    network = PrototypeMaps
    towers = (IMAGE,)
    image_labels = True
    losses = (
        *("classification2", "classification3", "classification4"),
        *("diversity", "foreground", "background", "area"),
    )

    def __init__(self, model: Network, config: LPDConfig, image: ImageEncoder | None = None):
        super().__init__(model, config, image=image)
        _check_width(self.model, config, image)
        self.keep_beside(image)
        self.pairs: Tensor
        self.mean: Tensor
        self.std: Tensor
        self.register_buffer("pairs", torch.triu_indices(self.maps.per_class, self.maps.per_class, 1), persistent=False)
        for name in ("mean", "std"):  # of the images in a batch
            value = torch.tensor(getattr(model.encoder, name))[:, None, None]
            self.register_buffer(name, value, persistent=False)

    @property
    def maps(self) -> MapDecoder:
        """The network's decoder: the prototypes and what compares them with the encoder's maps."""
        return self.model.decoder

    @property
    def image(self) -> ImageEncoder | None:
        """The frozen image encoder of the contrast; None if there is none."""
        return cast(ImageEncoder, self._towers[0]) if self._towers else None

    def forward(self, batch: Batch, step: Tensor) -> dict[str, Tensor]:
        image, present = batch.labelled.image, batch.labelled.present
        assert present is not None
        present = present[:, 1:]
        maps = self.model.encode(image)
        cosines = self.maps.cosines(maps)
        begun = (step >= self.config.start).to(cosines[0].dtype)

        classification = [classification_loss(score, present) for score in self.maps.scores(cosines)]
        compared = self.maps.raw_cosines(maps) if self.config.diversity_prototypes == "raw" else cosines[-1]
        pixels = self.compared_pixels(cosines[-1], present)
        diversity = diversity_loss(compared, pixels, self.pairs, self.config.diversity_temperature)
        late, parts = self.config.weight_diversity * diversity, {"diversity": diversity.detach()}
        if self.image is not None:
            contrast, parts_of_contrast = self.contrast(self.image, image, cosines, present)
            late, parts = late + self.config.weight_contrast * contrast, parts | parts_of_contrast
        weights = self.model.config.map_weights
        loss = sum(w * term for w, term in zip(weights, classification, strict=True)) + begun * late
        named = {f"classification{scale}": term.detach() for scale, term in enumerate(classification, start=2)}
        return {"loss": loss, **named, **parts}

    @torch.no_grad()
    def compared_pixels(
        self,
        cosine: Tensor,  # (B, F, K, h, w) of the deepest scale
        present: Tensor,  # (B, F)
    ) -> Tensor:  # (B, F, h, w) bool
        """Chooses the pixels over which the diversity loss compares the prototypes of each class."""
        if self.config.diversity_pixels == "all":
            return (present > 0)[:, :, None, None].expand(cosine[:, :, 0].shape)
        maps = (cosine * self.maps.factors[-1]).mean(2)
        highest = torch.cat([torch.full_like(maps[:, :1], BARE), maps], 1).argmax(1, keepdim=True)
        return highest == torch.arange(1, maps.shape[1] + 1, device=maps.device)[:, None, None]

    def contrast(
        self, encoder: ImageEncoder, image: Tensor, cosines: list[Tensor], present: Tensor
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Computes L_FG + L_BG + weight_area·area, and these parts alone.

        One cut is made of each image: the highest of the maps of the classes that it shows, pixel by pixel.
        """
        cam = normalised(self.maps.class_maps(cosines).map)
        cut = (cam * present[:, :, None, None]).amax(1, keepdim=True)  # (B, 1, h, w)
        area = weighted_mean(cut.sum(), cut.new_full((), cut.numel()))
        whole = functional.interpolate(cut, size=image.shape[-2:], mode="bilinear", align_corners=False)
        both = torch.cat([image * whole, image * (1 - whole)])  # what is cut away gets the encoder's mean colour
        seen = unit(working(encoder(both * self.std + self.mean)))  # (2B, D)
        prototypes = unit(working(self.maps.prototypes)).unflatten(0, (self.maps.foreground, self.maps.per_class))
        foreground, background = seen.chunk(2)
        shown = present.to(seen.dtype)
        of_foreground = contrast_loss(foreground, prototypes, shown, self.config.temperature)
        of_background = background_loss(background, prototypes, shown, self.config.temperature)
        loss = of_foreground + of_background + self.config.weight_area * area
        return loss, {
            "foreground": of_foreground.detach(),
            "background": of_background.detach(),
            "area": area.detach(),
        }

    @classmethod
    def settled(cls, config: Any) -> int:
        return config.start

    def prototype_cosines(self, image: Tensor) -> Tensor | None:
        return self.maps.mean_cosines(self.maps.cosines(self.model.encode(image)))

    def prototype_vectors(self) -> Tensor | None:
        return self.maps.prototypes.unflatten(0, (self.maps.foreground, self.maps.per_class))

    def diagnostics(self) -> dict[str, Tensor]:
        of_class = self.maps.prototypes.unflatten(0, (self.maps.foreground, self.maps.per_class))
        return {f"prototypes/{name}": value for name, value in mean_cosines(of_class).items()}


def classification_loss(
    score: Tensor,  # (B, F) logits
    present: Tensor,  # (B, F) 1 if the image shows the class
) -> Tensor:
    """Computes the mean binary cross-entropy over images of all ranks and foreground classes."""
    total = functional.binary_cross_entropy_with_logits(score, present.to(score.dtype), reduction="sum")
    return weighted_mean(total, score.new_full((), score.numel()))


def diversity_loss(
    cosine: Tensor,  # (B, F, K, h, w)
    pixels: Tensor,  # (B, F, h, w) bool: over which the prototypes of a class are compared
    pairs: Tensor,  # (2, P) i64: the pairs of different prototypes
    temperature: float,
) -> Tensor:
    """Averages exp(−J) over the pairs of prototypes of a class, then its image's classes, then images; 0 without pairs.

    J = Σ (p − q)(log p − log q), Jeffreys' divergence of the softmaxes over `pixels` of cosine/temperature. A class
    without pixels has no term, and an image without such classes counts as 0.
    """
    if pairs.shape[1] == 0:
        return cosine.new_zeros(())
    chosen = pixels.flatten(2)  # (B, F, h·w)
    log_p = torch.where(chosen[:, :, None], (cosine / temperature).flatten(3), NEVER).log_softmax(-1)
    p = log_p.exp()
    first, second = pairs
    ratio = torch.where(chosen[:, :, None], log_p[:, :, first] - log_p[:, :, second], 0.0)
    divergence = ((p[:, :, first] - p[:, :, second]) * ratio).sum(-1)  # (B, F, P)
    has = chosen.any(-1).to(cosine.dtype)
    of_image = (torch.exp(-divergence).mean(-1) * has).sum(1) / has.sum(1).clamp(min=1)
    return weighted_mean(of_image.sum(), of_image.new_full((), len(of_image)))


def contrast_loss(
    embedding: Tensor,  # (B, D) unit vectors
    prototypes: Tensor,  # (F, K, D) unit vectors
    positive: Tensor,  # (B, F) 1 if the class's prototypes are positives, else they are negatives
    temperature: float,
) -> Tensor:
    """Computes InfoNCE, −log(e^{s⁺} / (e^{s⁺} + Σ e^{s⁻})) with s = z·p/T.

    It is averaged over an image's positives, and over the images that have one.
    """
    per_class = prototypes.shape[1]
    similarity = torch.einsum("bd,mkd->bmk", embedding, prototypes) / temperature
    of_class = positive[:, :, None]
    negatives = torch.where(of_class > 0, NEVER, similarity).flatten(1).logsumexp(1)  # (B,)
    terms = torch.logaddexp(similarity, negatives[:, None, None]) - similarity  # (B, F, K)
    counts = positive.sum(1)
    mean = (terms * of_class).sum((1, 2)) / (counts * per_class).clamp(min=1)
    return weighted_mean(mean.sum(), (counts > 0).sum())


def background_loss(
    embedding: Tensor,  # (B, D) unit vectors, of the images without what they show
    prototypes: Tensor,  # (F, K, D) unit vectors
    shown: Tensor,  # (B, F) 1 if the image shows the class
    temperature: float,
) -> Tensor:
    """Computes −log(Σ m / (Σ m + Σ e^s)) with s = z·p/T, both sums over the pairs of an image and a prototype of a
    class that it shows; m is the mean of e^s over the prototypes of the classes that this image does not show.

    The sums run over the images of all ranks before the logarithm, as in the public code. Images that show all classes
    or none have no part, and without any other the loss is 0.
    """
    similarity = torch.einsum("bd,mkd->bmk", embedding, prototypes) / temperature
    of_shown = (shown > 0)[:, :, None]
    pairs = shown.sum(1) * prototypes.shape[1]
    others = prototypes.shape[0] * prototypes.shape[1] - pairs
    log_shown = torch.where(of_shown, similarity, NEVER).flatten(1).logsumexp(1)
    log_others = torch.where(of_shown, NEVER, similarity).flatten(1).logsumexp(1)
    log_means = log_others + (pairs.clamp(min=1) / others.clamp(min=1)).log()
    logs = torch.stack([log_means, log_shown], 1)
    usable = (pairs > 0) & (others > 0)
    positive, negative = _over_ranks_logsumexp(torch.where(usable[:, None], logs, NEVER).logsumexp(0)).unbind()
    return torch.logaddexp(positive, negative) - positive


def _over_ranks_logsumexp(local: Tensor) -> Tensor:  # (n,) -> (n,)
    """Computes the logarithm of the sum over all ranks of exp(local); the gradient is that of this rank's `local`."""
    group = all_ranks()
    if group is None:
        return local
    place = one_hot(torch.full((), group.rank(), device=local.device), group.size()).to(local.dtype)
    return over_ranks(place[:, None] * local).logsumexp(0)


def _check_width(model: PrototypeMaps, config: LPDConfig, image: ImageEncoder | None) -> None:
    """Raises InputError if prototypes cannot be compared with the image encoder's vectors, or with the deepest map."""
    deepest = model.encoder.channels[-1]
    if config.diversity_prototypes == "raw" and deepest != model.config.prototype_width:
        raise InputError(
            f"method.diversity_prototypes: raw prototypes have {model.config.prototype_width} numbers, but the deepest "
            f"map of {model.config.encoder} has {deepest} channels; take --model.prototype_width {deepest}."
        )
    if image is not None and image.width != model.config.prototype_width:
        raise InputError(
            f"model.prototype_width: {model.config.prototype_width}, but {image.identity['name']} gives vectors of "
            f"{image.width}; take --model.prototype_width {image.width}."
        )
