"""LPD: every loss term against an independent float64 numpy version, the corners where a term has nothing to say."""

import copy

import numpy as np
import pytest
import torch
from torch import Tensor

from mpamatch.batch import Batch
from mpamatch.errors import InputError
from mpamatch.methods.lpd import LPD, LPDConfig, background_loss, contrast_loss, diversity_loss
from mpamatch.methods.supervised import Supervised, SupervisedConfig
from mpamatch.models.image_encoder import ImageEncoder
from tests.methods.cases import CLASSES, at, lpd_network, method, network, weak_batch, with_gradients
from tests.tools.nosync import assert_no_sync

FOREGROUND = CLASSES - 1
RNG = np.random.default_rng(0)


def sigmoid(x: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-x))


def unit(x: np.ndarray) -> np.ndarray:
    return x / np.linalg.norm(x, axis=-1, keepdims=True)


def numbers(x: Tensor) -> np.ndarray:
    return x.detach().numpy()


def cosines_of(ours: LPD, image: Tensor) -> list[np.ndarray]:
    """(B, F, K, h, w) of scales 2, 3, 4: only the encoder and the linear layers' weights are ours."""
    decoder, found = ours.maps, []
    for x, layers in zip(ours.model.encode(image)[1:], decoder.project, strict=True):
        first, second = layers[0], layers[2]
        hidden = np.maximum(numbers(decoder.prototypes) @ numbers(first.weight).T + numbers(first.bias), 0)
        prototypes = unit(hidden @ numbers(second.weight).T + numbers(second.bias))
        pixels = unit(np.moveaxis(numbers(x), 1, -1))
        cosine = np.moveaxis(pixels @ prototypes.T, -1, 1)
        found.append(cosine.reshape(len(cosine), FOREGROUND, -1, *cosine.shape[2:]))
    return found


def raw_cosines_of(ours: LPD, image: Tensor) -> np.ndarray:
    """(B, F, K, h, w) of the deepest scale with the prototypes themselves."""
    pixels = unit(np.moveaxis(numbers(ours.model.encode(image)[-1]), 1, -1))
    cosine = np.moveaxis(pixels @ unit(numbers(ours.maps.prototypes)).T, -1, 1)
    return cosine.reshape(len(cosine), FOREGROUND, -1, *cosine.shape[2:])


def all_pixels(cosine: np.ndarray, present: np.ndarray) -> np.ndarray:
    """(B, F, h, w): every pixel of the classes that an image shows."""
    return np.broadcast_to(present[:, :, None, None] > 0, cosine[:, :, 0].shape)


def own_pixels(cosine: np.ndarray, factor: float) -> np.ndarray:
    """(B, F, h, w): where the mean map of a class is above those of the others and above .2."""
    own = np.zeros(cosine[:, :, 0].shape, bool)
    for image, row, column in np.ndindex(*own[:, 0].shape):
        maps = [factor * np.mean(of_class[:, row, column]) for of_class in cosine[image]]
        if max(maps) > 0.2:
            own[image, int(np.argmax(maps)), row, column] = True
    return own


def diversity_by_loops(cosine: np.ndarray, pixels: np.ndarray, temperature: float) -> float:
    """The mean over images of the mean over their classes with pixels, as in the public code."""
    of_images = []
    for of_image, chosen in zip(cosine, pixels, strict=True):
        of_classes = []
        for of_class, where in zip(of_image, chosen, strict=True):
            if not where.any() or len(of_class) < 2:
                continue
            p = np.exp(of_class[:, where] / temperature)
            p /= p.sum(1, keepdims=True)
            pairs = [(k, other) for k in range(len(p)) for other in range(k)]
            kl = lambda a, b: (a * np.log(a / b)).sum()  # noqa: E731
            of_classes.append(np.mean([np.exp(-(kl(p[k], p[o]) + kl(p[o], p[k]))) for k, o in pairs]))
        of_images.append(np.mean(of_classes) if of_classes else 0.0)
    return float(np.mean(of_images))


def contrast_by_loops(z: np.ndarray, prototypes: np.ndarray, positive: np.ndarray, temperature: float) -> float:
    means = []
    for vector, chosen in zip(z, positive, strict=True):
        e = np.exp(prototypes @ vector / temperature)  # (F, K)
        negatives = e[chosen == 0].sum()
        terms = [-np.log(one / (one + negatives)) for one in e[chosen == 1].flatten()]
        if terms:
            means.append(np.mean(terms))
    return float(np.sum(means) / max(len(means), 1))


def background_by_loops(z: np.ndarray, prototypes: np.ndarray, shown: np.ndarray, temperature: float) -> float:
    """−log of a ratio of sums over the pairs of an image and a prototype of a class that it shows."""
    above = below = 0.0
    for vector, classes in zip(z, shown, strict=True):
        e = np.exp(prototypes @ vector / temperature)  # (F, K)
        others = e[classes == 0].flatten()
        for one in e[classes == 1].flatten():
            if len(others):
                above, below = above + others.mean(), below + others.mean() + one
    return float(-np.log(above / below)) if below else 0.0


PRESENT = {
    "some": [[1, 0], [0, 1]],
    "all and none": [[1, 1], [0, 0]],
    "a class absent everywhere": [[1, 0], [1, 0]],
    "all-background images": [[0, 0], [0, 0]],
}


@pytest.mark.parametrize("per_class", [1, 3])
@pytest.mark.parametrize("case", PRESENT)
def test_every_term_is_that_of_plain_numpy(case, per_class):
    ours = method("lpd", start=5, model={"prototypes": per_class})
    data = weak_batch(present=PRESENT[case])
    present = np.array(PRESENT[case], dtype=np.float64)
    parts = ours(data, at(5))
    cosines = cosines_of(ours, data.labelled.image)
    wanted = {}
    for scale, (cosine, factor) in enumerate(zip(cosines, numbers(ours.maps.factors), strict=True), start=2):
        p = sigmoid((cosine * factor).mean((3, 4)).mean(2))
        wanted[f"classification{scale}"] = -np.mean(present * np.log(p) + (1 - present) * np.log(1 - p))
    pixels = all_pixels(cosines[-1], present)
    wanted["diversity"] = diversity_by_loops(cosines[-1], pixels, ours.config.diversity_temperature)
    terms = [wanted[f"classification{scale}"] for scale in (2, 3, 4)]
    wanted["loss"] = 0.1 * terms[0] + terms[1] + terms[2] + 0.5 * wanted["diversity"]
    assert parts.keys() == wanted.keys()
    for name, value in wanted.items():
        assert float(parts[name].detach()) == pytest.approx(float(value), rel=1e-9, abs=1e-12), name
    assert (wanted["diversity"] > 0) == (per_class > 1 and bool(present.any()))
    _, gradients = with_gradients(ours, parts["loss"])
    assert all(bool(value.isfinite().all()) for value in gradients.values())


@pytest.mark.parametrize("case", PRESENT)
@pytest.mark.parametrize("per_class", [1, 4])
def test_contrast(case, per_class):
    z, prototypes = unit(RNG.normal(size=(2, 6))), unit(RNG.normal(size=(FOREGROUND, per_class, 6)))
    positive = np.array(PRESENT[case], dtype=np.float64)
    given = torch.from_numpy(z).requires_grad_()
    found = contrast_loss(given, torch.from_numpy(prototypes), torch.from_numpy(positive), 0.07)
    assert float(found.detach()) == pytest.approx(contrast_by_loops(z, prototypes, positive, 0.07), rel=1e-9, abs=1e-12)
    found.backward()
    assert given.grad is not None
    assert bool(given.grad.isfinite().all())


@pytest.mark.parametrize("case", PRESENT)
@pytest.mark.parametrize("per_class", [1, 4])
@pytest.mark.parametrize("temperature", [0.07, 0.002])  # the latter's e^s reaches 1e217, beyond float32
def test_background(temperature, case, per_class):
    z, prototypes = unit(RNG.normal(size=(2, 6))), unit(RNG.normal(size=(FOREGROUND, per_class, 6)))
    shown = np.array(PRESENT[case], dtype=np.float64)
    given = torch.from_numpy(z).requires_grad_()
    found = background_loss(given, torch.from_numpy(prototypes), torch.from_numpy(shown), temperature)
    wanted = background_by_loops(z, prototypes, shown, temperature)
    assert float(found.detach()) == pytest.approx(wanted, rel=1e-9, abs=1e-12)
    found.backward()
    assert given.grad is not None
    assert bool(given.grad.isfinite().all())
    single = [torch.from_numpy(x).float() for x in (z, prototypes, shown)]
    assert float(background_loss(*single, temperature)) == pytest.approx(wanted, rel=1e-3, abs=1e-3)


def test_background_by_hand():
    """One prototype a class, e^s of the classes shown and not shown 1 and 3, then 1 and 1: −log(4/6), where the mean of
    −log would be (log 4/3 + log 2)/2."""
    cosines = torch.tensor([[0.0, np.log(3) / 2], [0.0, 0.0]], dtype=torch.float64)
    z = torch.eye(2, 3, dtype=torch.float64)
    prototypes = torch.zeros(2, 1, 3, dtype=torch.float64)
    prototypes[:, 0, :2] = cosines.T
    found = background_loss(z, prototypes, torch.tensor([[1.0, 0.0], [1.0, 0.0]]), 0.5)
    assert float(found) == pytest.approx(np.log(6 / 4), rel=1e-12)


@pytest.mark.parametrize("per_class", [2, 3])
@pytest.mark.parametrize("prototypes", ["projected", "raw"])
@pytest.mark.parametrize("pixels", ["all", "own"])
def test_diversity_on_the_pixels_and_prototypes_chosen(pixels, prototypes, per_class):
    settings = {"diversity_pixels": pixels, "diversity_prototypes": prototypes}
    ours = method("lpd", model={"prototypes": per_class, "prototype_width": 128}, **settings)
    with torch.no_grad():  # maps on either side of .2
        ours.maps.factors.mul_(5)
    data = weak_batch(present=PRESENT["all and none"])
    cosines = cosines_of(ours, data.labelled.image)
    compared = cosines[-1] if prototypes == "projected" else raw_cosines_of(ours, data.labelled.image)
    own = own_pixels(cosines[-1], float(ours.maps.factors[-1].detach()))
    assert 0 < own.mean() < 1
    chosen = own if pixels == "own" else all_pixels(compared, np.array(PRESENT["all and none"]))
    parts = ours(data, at(0))
    wanted = diversity_by_loops(compared, chosen, 0.07)
    assert float(parts["diversity"]) == pytest.approx(wanted, rel=1e-9)
    assert wanted > 0
    _, gradients = with_gradients(ours, parts["loss"])
    assert all(bool(value.isfinite().all()) for value in gradients.values())


def test_diversity_by_hand():
    """Three pixels, of which the class has the first two. Prototypes of cosines T·(ln 3, 0, …) and T·(0, 0, …):
    p = (¾, ¼), q = (½, ½), J = ¼ ln 3/2 − ¼ ln 1/2 = ¼ ln 3. A second image has no pixel of it: half of exp(−J)."""
    cosine = torch.tensor([0.07 * np.log(3), 0, 0.9, 0, 0, -0.9], dtype=torch.float64).reshape(1, 1, 2, 1, 3)
    pixels = torch.tensor([[[[True, True, False]]], [[[False, False, False]]]])
    found = diversity_loss(cosine.repeat(2, 1, 1, 1, 1), pixels, torch.triu_indices(2, 2, 1), 0.07)
    assert float(found) == pytest.approx(3**-0.25 / 2, rel=1e-12)


def test_a_class_without_pixels_of_its_own_costs_nothing_and_stays_finite():
    ours = method("lpd", diversity_pixels="own")
    with torch.no_grad():
        ours.maps.factors.zero_()
    parts = ours(weak_batch(), at(0))
    assert float(parts["diversity"]) == 0
    _, gradients = with_gradients(ours, parts["loss"])
    assert all(bool(value.isfinite().all()) for value in gradients.values())


@pytest.mark.parametrize("temperature", [0.05, 0.1])
def test_diversity_of_equal_and_of_distant_maps(temperature):
    """Prototypes that look at the same pixels cost 1, those that look at pixels of their own nothing."""
    pairs = torch.triu_indices(2, 2, 1)
    maps, everywhere = torch.zeros(1, 1, 2, 4, 4, dtype=torch.float64), torch.ones(1, 1, 4, 4, dtype=torch.bool)
    assert float(diversity_loss(maps, everywhere, pairs, temperature)) == pytest.approx(1)
    maps[0, 0, 0, :2], maps[0, 0, 1, 2:] = 1, 1
    assert float(diversity_loss(maps, everywhere, pairs, temperature)) < 1e-6


def test_the_gradient_of_diversity_parts_prototypes():
    """One softmax: a step down the gradient from nearly equal maps lowers the loss by more than a thousandth."""
    torch.manual_seed(0)
    maps = (0.01 * torch.randn(2, 2, 3, 5, 5, dtype=torch.float64)).requires_grad_()
    pairs, pixels = torch.triu_indices(3, 3, 1), torch.ones(2, 2, 5, 5, dtype=torch.bool)
    before = diversity_loss(maps, pixels, pairs, 0.07)
    before.backward()
    after = diversity_loss(maps.detach() - maps.grad, pixels, pairs, 0.07)
    assert float(before.detach() - after) > 1e-3


class Colours(torch.nn.Module):
    """Stands for a tower: the mean of each colour, in the four corners' weights, makes six numbers."""

    def __init__(self) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(3)
        self.matrix = torch.nn.Parameter(torch.randn(3 * 16, 6, generator=generator))

    def forward(self, image: Tensor) -> Tensor:
        return torch.nn.functional.adaptive_avg_pool2d(image, 4).flatten(1) @ self.matrix


def colours() -> ImageEncoder:
    return ImageEncoder(
        Colours(), side=24, width=6, mean=(0.4, 0.5, 0.6), std=(0.2, 0.3, 0.4), identity={"name": "colours"}
    )


def with_encoder(dtype: torch.dtype = torch.float64, **settings) -> LPD:
    model = lpd_network(prototypes=3, prototype_width=6)
    ours = LPD(model, LPDConfig(start=0, **settings), image=colours())
    assert isinstance(ours, LPD)
    return ours.to(dtype).train()


def test_the_contrast_cuts_what_the_maps_show_and_sees_it_with_the_frozen_encoder():
    ours, data = with_encoder(), weak_batch(present=[[1, 0], [1, 1]])
    parts = ours(data, at(0))
    assert ours.image is not None
    tower, image = copy.deepcopy(ours.image), data.labelled.image
    decoder = ours.maps
    cam = decoder(ours.model.encode(image)).map.detach()
    low, high = cam.amin((2, 3), keepdim=True), cam.amax((2, 3), keepdim=True)
    cam = (cam - low) / (high - low)
    cut = torch.stack([cam[0, 0], torch.maximum(cam[1, 0], cam[1, 1])])[:, None]
    assert float(parts["area"]) == pytest.approx(float(cut.mean()), rel=1e-9)
    whole = torch.nn.functional.interpolate(cut, size=image.shape[-2:], mode="bilinear", align_corners=False)
    mean, std = (torch.tensor(x)[:, None, None].double() for x in (ours.model.encoder.mean, ours.model.encoder.std))
    seen = [unit(numbers(tower((image * part) * std + mean))) for part in (whole, 1 - whole)]
    prototypes = unit(numbers(decoder.prototypes)).reshape(FOREGROUND, 3, 6)
    positive = np.array([[1.0, 0.0], [1.0, 1.0]])
    of_foreground = contrast_by_loops(seen[0], prototypes, positive, 0.07)
    of_background = background_by_loops(seen[1], prototypes, positive, 0.07)
    assert float(parts["foreground"]) == pytest.approx(of_foreground, rel=1e-6)  # the encoder's constants are float32
    assert float(parts["background"]) == pytest.approx(of_background, rel=1e-6)
    classification = 0.1 * parts["classification2"] + parts["classification3"] + parts["classification4"]
    late = 0.1 * (parts["foreground"] + parts["background"] + 0.0005 * parts["area"]) + 0.5 * parts["diversity"]
    assert float(parts["loss"].detach()) == pytest.approx(float(classification + late), rel=1e-9)


def test_the_frozen_encoder_stays_as_it_is_and_out_of_the_state():
    ours = with_encoder()
    _, gradients = with_gradients(ours, ours(weak_batch(), at(0))["loss"])
    assert not any("matrix" in name for name in [*gradients, *ours.state_dict()])
    assert ours.image is not None
    assert all(p.grad is None for p in ours.image.parameters())
    assert next(ours.image.parameters()).dtype == torch.float64, "it moves with the method"
    assert float(gradients["model.decoder.prototypes"].abs().max()) > 0


def test_contrast_and_diversity_wait_for_their_start():
    ours, data = method("lpd", start=3), weak_batch()
    before, after = ours(data, at(2)), ours(data, at(3))
    classification = 0.1 * before["classification2"] + before["classification3"] + before["classification4"]
    assert float(before["loss"].detach()) == pytest.approx(float(classification), rel=1e-12)
    added = float(after["loss"].detach() - before["loss"].detach())
    assert added == pytest.approx(0.5 * float(after["diversity"]), rel=1e-9)


def test_what_does_not_fit_is_refused():
    with pytest.raises(InputError, match=r"method\.name: lpd trains a PrototypeMaps, got a TransUNet"):
        LPD(network(), LPDConfig())
    with pytest.raises(InputError, match=r"method\.name: supervised trains a TransUNet, got a PrototypeMaps"):
        Supervised(lpd_network(), SupervisedConfig())
    with pytest.raises(InputError, match=r"take --model\.prototype_width 6"):
        LPD(lpd_network(prototype_width=8), LPDConfig(), image=colours())
    with pytest.raises(
        InputError, match=r"deepest map of small_conv has 128 channels; take --model\.prototype_width 128"
    ):
        method("lpd", diversity_prototypes="raw")
    with pytest.raises(InputError, match=r"method\.diversity_temperature: expected more than 0, got 0\.0"):
        method("lpd", diversity_temperature=0.0)


def _step(ours: LPD, data: Batch, step: Tensor) -> None:
    ours(data, step)["loss"].backward()


@pytest.mark.slow
def test_no_sync_with_the_frozen_encoder():
    assert_no_sync(_step, with_encoder(torch.float32), weak_batch(dtype=torch.float32), at(3))


@pytest.mark.slow
def test_one_graph_with_the_frozen_encoder():
    torch._dynamo.reset()
    eager, ours, data = with_encoder(torch.float32), with_encoder(torch.float32), weak_batch(dtype=torch.float32)
    compiled = torch.compile(ours, fullgraph=True, backend="aot_eager")
    with torch._dynamo.config.patch(error_on_recompile=True):
        found = [{name: float(x.detach()) for name, x in compiled(data, at(step)).items()} for step in (0, 9)]
    assert found[0] == pytest.approx({name: float(x.detach()) for name, x in eager(data, at(0)).items()}, rel=1e-4)
    assert found[1] == pytest.approx(found[0], rel=1e-4)
    torch._dynamo.reset()


@pytest.mark.slow
def test_one_graph_with_own_pixels_of_raw_prototypes():
    torch._dynamo.reset()
    settings = {"diversity_pixels": "own", "diversity_prototypes": "raw", "model": {"prototype_width": 128}}
    eager, ours = (method("lpd", dtype=torch.float32, **settings) for _ in range(2))
    data, compiled = weak_batch(dtype=torch.float32), torch.compile(ours, fullgraph=True, backend="aot_eager")
    with torch._dynamo.config.patch(error_on_recompile=True):
        found = [{name: float(x.detach()) for name, x in compiled(data, at(step)).items()} for step in (0, 9)]
    assert found[0] == pytest.approx({name: float(x.detach()) for name, x in eager(data, at(0)).items()}, rel=1e-4)
    assert found[1] == pytest.approx(found[0], rel=1e-4)
    torch._dynamo.reset()
