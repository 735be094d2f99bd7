"""Synthetic colon tissue in haematoxylin and eosin, about one micrometre per pixel, with the glands as label.

An image is made as a slide is: the amount of each stain is drawn first (fibres, epithelium, nuclei), then light is sent
through it by the law of Beer and Lambert, blurred and made noisy. Colour alone does not find a gland: lymphoid
follicles are as dark as its nuclei, vessels, fat and tears as white as its lumen, and stains differ between patients.
"""

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray
from scipy import ndimage
from scipy.spatial import cKDTree

from mpamatch.data.crowded import own_depth, pressed
from mpamatch.errors import InputError

Floats = NDArray[np.float64]
Flags = NDArray[np.bool_]

IMAGES_PER_PATIENT = 4
SMALLEST = 16
SMALLEST_GLAND = 8  # radius, pixels
MARGIN = 16  # pixels drawn around the image and cut off, so that the border cuts through glands and nuclei
# Optical density of the pure stains in red, green and blue (Ruifrok & Johnston 2001, table 1).
HAEMATOXYLIN = np.array([0.650, 0.704, 0.286])
EOSIN = np.array([0.072, 0.990, 0.105])


def synthesize(
    index: int, seed: int, size: int = 128
) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:  # (size, size, 3), (size, size)
    """Makes an image of tissue (RGB, 0 to 255) and its label (0 background, 1 gland: epithelium and lumen).

    The same (index, seed, size) gives the same image in any order of calls; a larger `size` shows more tissue at the
    same scale, not the same tissue larger.

    Args:
        index: of the image, from 0; four consecutive ones share a patient (`group_of`).
        seed: of all images.
        size: side in pixels, at least 16.

    Raises:
        InputError: a negative index or seed, or a size below 16.
    """
    image, number = synthesize_glands(index, seed, size)
    return image, (number > 0).astype(np.uint8)


def synthesize_glands(
    index: int, seed: int, size: int = 128, *, crowded: bool = False
) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:  # (size, size, 3), (size, size)
    """Makes the image that `synthesize` makes, and numbers its glands, from 1; 0 is none. Raises InputError as it does.

    Of `crowded` tissue glands touch, back to back, each with its own epithelium; otherwise stroma lies between them.
    """
    _check("index", index, 0)
    _check("seed", seed, 0)
    _check("size", size, SMALLEST)
    patient = _patient(np.random.default_rng([seed, 1, index // IMAGES_PER_PATIENT]))
    rng = np.random.default_rng([seed, 0, index, size])
    side = size + 2 * MARGIN
    content = _content(rng, patient, crowded)
    tissue = _tissue(rng, side)
    glands = _glands(rng, patient, content, tissue)
    decoys = _decoys(rng, content, glands, tissue)
    slide = _Slide(rng, side)
    _draw_stroma(slide, rng, patient, glands)
    _draw_decoys(slide, rng, patient, glands, decoys)
    _draw_epithelium(slide, rng, patient, glands)
    slide.clear = np.maximum(slide.clear, _cover(-tissue))
    inner = slice(MARGIN, MARGIN + size)
    image = _photograph(slide.stain[:, inner, inner] * (1 - slide.clear[inner, inner]), rng, patient)
    return image, glands.number[inner, inner]


def group_of(index: int) -> str:
    """Names the patient that image `index` comes from, one for four consecutive images; splits keep it together."""
    _check("index", index, 0)
    return f"patient-{index // IMAGES_PER_PATIENT:04d}"


def _check(name: str, value: int, least: int) -> None:
    if value < least:
        raise InputError(f"synthetic tissue: {name} is {value}, but must be at least {least}.")


@dataclass(frozen=True)
class _Patient:
    """What the images of one patient have in common."""

    stains: Floats  # (2, 3): optical density of haematoxylin and eosin
    light: Floats  # (3,): the bare slide, 0..1
    blur: float  # pixels
    grade: float  # 0 regular crypts .. 1 crowded, irregular, fused glands
    goblets: float  # share of the places for goblet cells that hold one
    strata: float  # rows of nuclei in the epithelium
    nucleus: float  # scale of all nuclei
    chromatin: float  # haematoxylin in nuclei
    cytoplasm: Floats  # (2,): haematoxylin and eosin of the epithelium
    collagen: Floats  # (2,): haematoxylin and eosin of the stroma
    lymphocytes: float  # share of the places in the stroma that hold one
    halo: float  # how far the stroma has shrunk away from the glands, 0..1


def _patient(rng: Generator) -> _Patient:
    """Draws a patient, whose stains and glands may be far from another's: a few patients do not show what all have."""
    stains = np.stack([HAEMATOXYLIN, EOSIN]) + rng.normal(0, 0.085, (2, 3))
    stains = np.clip(stains, 0.02, None)
    stains /= np.linalg.norm(stains, axis=1, keepdims=True)
    thickness = np.exp(rng.normal(0, 0.255))
    return _Patient(
        stains=stains * thickness * np.exp(rng.normal(0, 0.204, (2, 1))),
        light=rng.uniform(0.88, 0.98) * (1 - rng.uniform(0, 0.102, 3)),
        blur=rng.uniform(0.45, 1.1),
        grade=rng.beta(0.6, 0.7),
        goblets=rng.uniform(0, 1) ** 1.3,
        strata=rng.uniform(1, 2.6),
        nucleus=rng.uniform(0.75, 1.4),
        chromatin=rng.uniform(0.7, 1.6),
        cytoplasm=np.array([rng.uniform(0.10, 0.65), rng.uniform(0.15, 0.75)]),
        collagen=np.array([rng.uniform(0.05, 0.35), rng.uniform(0.15, 0.75)]),
        lymphocytes=rng.uniform(0.1, 0.6),
        halo=max(0.0, rng.uniform(-0.6, 0.6)),
    )


@dataclass(frozen=True)
class _Content:
    """What lies in one field of view; numbers of things are per 128 x 128 pixels."""

    glands: float
    gap: float  # least stroma between two glands, pixels; below 0: how far they may press into each other
    follicles: float
    vessels: float
    fat: float
    tears: float


def _content(rng: Generator, patient: _Patient, crowded: bool) -> _Content:
    """Draws a field of view: submucosa, sparse glands or mucosa, whose glands touch in most if crowded."""
    kind = rng.choice(["submucosa", "sparse", "mucosa"], p=[0.12, 0.23, 0.65])
    deep = kind == "submucosa"
    return _Content(
        glands={"submucosa": 0.0, "sparse": 2.0, "mucosa": 13.0}[kind],
        gap=rng.uniform(-5, 2) if crowded else rng.uniform(2.5, 9) * (1 - 0.6 * patient.grade),
        follicles=rng.choice([0, 1, 2], p=[0.45, 0.35, 0.2]),
        vessels=rng.choice([0, 1, 3], p=[0.4, 0.35, 0.25]) + deep,
        fat=rng.choice([0, 5], p=[0.3, 0.7] if deep else [0.9, 0.1]),
        tears=rng.choice([0, 1, 3], p=[0.4, 0.4, 0.2]),
    )


# Fields: an array of the canvas, positive inside a thing, in pixels from its border.


@lru_cache(maxsize=64)
def _basis(length: int, scale: float) -> Floats:  # (length, knots)
    """Builds a basis with rows of unit norm, so that normal coefficients give noise of unit variance everywhere."""
    knots = np.arange(-2, length / scale + 2)
    rows = np.exp(-0.5 * ((np.arange(length)[:, None] / scale - knots) / 0.7) ** 2)
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def _noise(rng: Generator, side: int, scale: float, across: float | None = None) -> Floats:  # (side, side)
    """Draws smooth normal noise of unit variance, its grain `scale` pixels down and `across` (or `scale`) across."""
    rows, columns = _basis(side, scale), _basis(side, across or scale)
    return rows @ rng.standard_normal((rows.shape[1], columns.shape[1])) @ columns.T


def _blob(
    rng: Generator, side: int, centre: Floats, radius: float, stretch: float, wobble: float
) -> Floats:  # (side, side)
    """Draws a star-shaped field around `centre` (row, column): an ellipse of area π · radius², uneven by `wobble`.

    Only a window is computed, 12 pixels wider than the ellipse: far outside the field is -side.
    """
    reach = (1 + wobble) * radius * np.sqrt(stretch) + 12
    first = np.clip(np.floor(centre - reach).astype(np.int64), 0, side)
    last = np.clip(np.ceil(centre + reach).astype(np.int64), 0, side)
    down, right = (np.arange(first[axis], last[axis]) - centre[axis] for axis in (0, 1))
    turn = np.exp(1j * rng.uniform(0, 2 * np.pi))
    offset = (right[None, :] + 1j * down[:, None]) * turn + 1e-9  # never 0, so that it has a direction
    distance = np.abs(offset)
    unit = offset / distance
    outline = radius / np.sqrt(unit.real**2 / stretch + unit.imag**2 * stretch)
    power = unit
    for order in range(2, 6):
        power = power * unit
        bump = rng.normal(0, wobble / order) * np.exp(1j * rng.uniform(0, 2 * np.pi))
        outline = outline * (1 + (power * bump).real)
    field = np.full((side, side), -float(side))
    field[first[0] : last[0], first[1] : last[1]] = np.minimum(outline, reach - 1) - distance
    return field


def _cover(field: Floats) -> Floats:
    """Computes the share of each pixel inside `field`."""
    return np.clip(field + 0.5, 0, 1)


def _heading(field: Floats) -> Floats:
    """Computes, per pixel, the angle in which `field` rises fastest."""
    down, right = np.gradient(ndimage.gaussian_filter(field, 1.5))
    return np.arctan2(down, right)


def _tissue(rng: Generator, side: int) -> Floats:  # (side, side)
    """Draws the field of tissue: everywhere, or with an uneven edge to the bare slide in one image of four."""
    if rng.uniform() > 0.25:
        return np.full((side, side), float(side))
    angle = rng.uniform(0, 2 * np.pi)
    place = np.arange(side) - side / 2
    plane = np.cos(angle) * place[None, :] + np.sin(angle) * place[:, None]
    return plane + rng.uniform(0.1, 0.4) * side + 5 * _noise(rng, side, 22) + 1.5 * _noise(rng, side, 5)


@dataclass(frozen=True)
class _Glands:
    """The glands of an image."""

    number: NDArray[np.int64]  # (side, side): 0 outside, else which gland
    depth: Floats  # (side, side): pixels to the gland's border, inside
    outside: Floats  # (side, side): pixels to the nearest gland, outside
    foot: tuple[
        NDArray[np.int32], NDArray[np.int32]
    ]  # per pixel inside, the row and column of the border nearest to it


def _glands(rng: Generator, patient: _Patient, content: _Content, tissue: Floats) -> _Glands:
    """Places glands one by one where there is room for them."""
    side = len(tissue)
    number = np.zeros((side, side), dtype=np.int64)
    room = tissue - 1
    for attempt in range(round(content.glands * (side / 128) ** 2)):
        centre = _somewhere(rng, room)
        space = _at(room, centre) - content.gap
        if space < SMALLEST_GLAND:
            continue
        field = _gland(rng, patient, side, centre, space)
        apart = content.gap >= 0
        here = pressed(field > 0, number, tissue) if not apart else field > 0
        if here.any() and not (apart and np.any((field > -content.gap) & (room < 0))):
            number[here] = attempt + 1
            room = np.minimum(room, -field)
    depth, foot = own_depth(number)
    if not number.any():
        return _Glands(number, depth, np.full((side, side), float(side)), (foot[0], foot[1]))
    return _Glands(number, depth, ndimage.distance_transform_edt(number == 0), (foot[0], foot[1]))


def _gland(rng: Generator, patient: _Patient, side: int, centre: Floats, space: float) -> Floats:  # (side, side)
    """Draws a crypt cut across or along or, with the grade, several grown together; its radius is at most `space`."""
    radius = min(rng.uniform(13, 28 + 8 * patient.grade), space)
    wobble = rng.uniform(0.05, 0.15 + 0.45 * patient.grade)
    field = _blob(rng, side, centre, radius, rng.uniform(1, 2.2), wobble)
    for _ in range(rng.binomial(2, 0.6 * patient.grade)):
        angle = rng.uniform(0, 2 * np.pi)
        centre = centre + radius * rng.uniform(0.8, 1.3) * np.array([np.sin(angle), np.cos(angle)])
        field = np.maximum(field, _blob(rng, side, centre, radius * rng.uniform(0.5, 0.9), 1.3, wobble))
    return field


@dataclass(frozen=True)
class _Decoys:
    """What resembles a part of a gland: fields (side, side), kept two pixels away from glands."""

    follicles: Floats
    vessels: Floats
    fat: Floats
    tears: Floats


def _decoys(rng: Generator, content: _Content, glands: _Glands, tissue: Floats) -> _Decoys:
    """Places the decoys where there is room between glands."""
    side = len(tissue)
    room = np.where(glands.number > 0, -1.0, np.minimum(glands.outside, tissue)) - 2

    def scattered(count: float, least: float, most: float, stretch: float, wobble: float) -> Floats:
        field = np.full((side, side), -float(side))
        for _ in range(round(count * (side / 128) ** 2)):
            centre = _somewhere(rng, room)
            shape = (rng.uniform(least, most), rng.uniform(1, stretch), wobble)
            field = np.maximum(field, _blob(rng, side, centre, *shape))
        return field

    fat = scattered(content.fat, 7, 17, 1.5, 0.15)
    return _Decoys(
        follicles=np.minimum(scattered(content.follicles, 11, 28, 1.8, 0.3), room),
        vessels=np.minimum(scattered(content.vessels, 3, 9, 2.5, 0.2), room - 3),
        fat=np.minimum(fat, room),
        tears=np.minimum(scattered(content.tears, 3, 7, 9, 0.5), room),
    )


def _somewhere(rng: Generator, room: Floats) -> Floats:  # (2,)
    """Draws a place (row, column) with much room around it: the best of six."""
    places = rng.uniform(0, len(room) - 1, (6, 2))
    return places[np.argmax([_at(room, place) for place in places])]


def _at(field: Floats, place: Floats) -> float:
    return float(field[round(place[0]), round(place[1])])


class _Slide:
    """A slide in the making: `stain` (2, side, side), optical density; `clear` (side, side), share without tissue."""

    def __init__(self, rng: Generator, side: int) -> None:
        self.grain = _noise(rng, side, 1.1)  # of the chromatin
        self.stain = np.zeros((2, side, side))
        self.clear = np.zeros((side, side))

    def lay(self, cover: Floats, haematoxylin: Floats | float, eosin: Floats | float, clear: float = 0.0) -> None:
        """Lays a thing over what is there; `cover`: its share of each pixel, 0 to 1."""
        self.stain[0] += cover * (haematoxylin - self.stain[0])
        self.stain[1] += cover * (eosin - self.stain[1])
        self.clear += cover * (clear - self.clear)


def _scatter(rng: Generator, where: Flags, spacing: float, share: Floats | float = 1.0) -> Floats:  # (N, 2)
    """Draws places (row, column) inside `where`, no two nearer than 0.7 spacings, thinned to `share`.

    Each cell of a grid has one place, the first of five tries that falls inside, which fills thin bands too.
    """
    side = len(where)
    count = int(np.ceil(side / spacing))
    corners = np.stack(np.meshgrid(np.arange(count), np.arange(count), indexing="ij"), axis=-1).reshape(-1, 2)
    tries = (corners + rng.uniform(size=(5, count**2, 2))) * spacing
    row, column = np.minimum(tries, side - 1).astype(np.int64).transpose(2, 0, 1)
    inside = where[row, column]  # (5, cells)
    first, cell = inside.argmax(axis=0), np.arange(count**2)
    chance = np.broadcast_to(share, where.shape)[row[first, cell], column[first, cell]]
    points = tries[first, cell][inside.any(axis=0) & (rng.uniform(size=count**2) < chance)]
    if len(points) > 1:
        near = cKDTree(points).query_pairs(0.7 * spacing, output_type="ndarray")
        points = np.delete(points, near[:, 1], axis=0)
    return points


def _ellipses(
    rng: Generator,
    side: int,
    places: Floats,  # (N, 2)
    length: float,
    width: float,
    angle: Floats | None = None,  # (side, side)
    spread: float = 0.25,
) -> Floats:  # (side, side)
    """Draws the cover, 0 to 1, of ellipses with these half axes ± 15 %, the long one along `angle` ± `spread`."""
    count = len(places)
    reach = int(np.ceil(1.5 * length)) + 1
    middle = np.floor(places).astype(np.int64)
    steps = np.arange(-reach, reach + 1)
    rows = np.clip(middle[:, 0, None] + steps, 0, side - 1)[:, :, None]  # (N, P, 1)
    columns = np.clip(middle[:, 1, None] + steps, 0, side - 1)[:, None, :]  # (N, 1, P)
    down, right = rows - places[:, 0, None, None], columns - places[:, 1, None, None]
    if angle is None:
        turn = rng.uniform(0, np.pi, (count, 1, 1))
    else:
        here = np.clip(middle, 0, side - 1)
        turn = (angle[here[:, 0], here[:, 1]] + rng.normal(0, spread, count))[:, None, None]
    long = length * np.clip(rng.normal(1, 0.15, (count, 1, 1)), 0.6, 1.4)
    short = width * np.clip(rng.normal(1, 0.15, (count, 1, 1)), 0.6, 1.4)
    along = (right * np.cos(turn) + down * np.sin(turn)) / long
    across = (down * np.cos(turn) - right * np.sin(turn)) / short
    cover = np.clip((1 - np.sqrt(along**2 + across**2)) * short + 0.5, 0, 1) * rng.uniform(0.7, 1, (count, 1, 1))
    out = np.zeros(side * side)
    np.maximum.at(out, (rows * side + columns).ravel(), cover.ravel())
    return out.reshape(side, side)


def _lay_nuclei(slide: _Slide, patient: _Patient, cover: Floats, darkness: float = 1.0) -> None:
    """Lays nuclei: grainy haematoxylin."""
    chromatin = patient.chromatin * darkness * (1 + 0.22 * slide.grain)
    slide.lay(cover, chromatin, 0.25)


def _draw_stroma(slide: _Slide, rng: Generator, patient: _Patient, glands: _Glands) -> None:
    """Draws wavy collagen that bends around glands, with spindle cells and lymphocytes."""
    side = len(glands.depth)
    angle = rng.uniform(0, np.pi)
    rows, columns = np.indices((side, side)) - side / 2
    along = columns * np.cos(angle) + rows * np.sin(angle) + 3 * _noise(rng, side, 14)
    across = rows * np.cos(angle) - columns * np.sin(angle) + rng.uniform(2, 6) * _noise(rng, side, 24)
    across = across + 12 * np.exp(-glands.outside / 6) * (glands.number == 0)
    threads = _noise(rng, side, 1.2, 11)
    texture = ndimage.map_coordinates(threads, [across + side / 2, along + side / 2], order=1, mode="reflect")
    loose = _noise(rng, side, 9)
    eosin = patient.collagen[1] * (1 + 0.22 * texture + 0.12 * loose)
    haematoxylin = patient.collagen[0] * (1 + 0.25 * _noise(rng, side, 4) + 0.25 * texture)
    slide.lay(np.ones((side, side)), np.clip(haematoxylin, 0, None), np.clip(eosin, 0.05, None))
    slide.clear = np.clip(0.3 * (texture + loose - 1.7), 0, 0.7)  # loose fibres let light between them
    slide.clear = np.maximum(slide.clear, patient.halo * np.clip(2.5 - glands.outside, 0, 1) * (glands.number == 0))
    fibres = _heading(across) + np.pi / 2
    stroma = (glands.number == 0) & (glands.outside > 2.5)
    scale = patient.nucleus
    spindles = _scatter(rng, stroma, 7.5, 0.55)
    _lay_nuclei(slide, patient, _ellipses(rng, side, spindles, 4.2 * scale, 1.0 * scale, fibres), 0.9)
    crowd = np.clip(patient.lymphocytes * (1 + 0.9 * _noise(rng, side, 18)), 0, 1)
    round_cells = _scatter(rng, stroma, 5.0 * scale, crowd)
    _lay_nuclei(slide, patient, _ellipses(rng, side, round_cells, 2.3 * scale, 2.0 * scale))


def _draw_decoys(slide: _Slide, rng: Generator, patient: _Patient, glands: _Glands, decoys: _Decoys) -> None:
    """Draws follicles, fat, tears, and vessels with blood and lining."""
    side = len(glands.depth)
    scale = patient.nucleus
    _draw_follicles(slide, rng, patient, decoys.follicles)
    rim = np.clip(1.6 - np.abs(decoys.fat), 0, 1)
    slide.lay(_cover(decoys.fat), 0.02, 0.05, clear=0.97)
    slide.lay(0.8 * rim, patient.collagen[0], patient.collagen[1])
    slide.lay(_cover(decoys.tears), 0.0, 0.0, clear=1.0)
    wall = rng.uniform(1.5, 6)
    slide.lay(
        0.85 * _cover(decoys.vessels + wall) * (glands.number == 0),
        patient.collagen[0],
        1.3 * patient.collagen[1],
    )
    slide.lay(_cover(decoys.vessels), 0.03, 0.05, clear=0.9)
    blood = _scatter(rng, decoys.vessels > 0.5, 4.5, rng.uniform(0, 0.9))
    slide.lay(_ellipses(rng, side, blood, 2.6, 2.3), 0.05, 0.85)
    lining = _scatter(rng, (decoys.vessels < -0.5) & (decoys.vessels > -wall), 5.0, 0.9)
    tangent = _heading(decoys.vessels) + np.pi / 2
    _lay_nuclei(slide, patient, _ellipses(rng, side, lining, 3.6 * scale, 1.3 * scale, tangent))


def _draw_follicles(slide: _Slide, rng: Generator, patient: _Patient, field: Floats) -> None:
    """Draws lymphocytes side by side; a large follicle has a pale centre, much as a gland has a lumen."""
    side = len(field)
    slide.lay(0.7 * _cover(field / 3), patient.collagen[0] + 0.15, 0.25)
    pale = np.clip((field - 9) / 4, 0, 1)
    cells = _scatter(rng, field > 0, 4.3 * patient.nucleus, 1 - 0.6 * pale)
    cover = _ellipses(rng, side, cells, 2.4 * patient.nucleus, 2.1 * patient.nucleus)
    _lay_nuclei(slide, patient, cover * (1 - 0.35 * pale))


def _draw_epithelium(slide: _Slide, rng: Generator, patient: _Patient, glands: _Glands) -> None:
    """Draws glands from the border inwards: upright nuclei, cytoplasm in streaks, goblets of mucin, the lumen."""
    side = len(glands.depth)
    inside = glands.number > 0
    cover = inside.astype(np.float64)
    height = _height(rng, glands)
    streaks = _noise(rng, side, 1.6)[glands.foot]  # one value along each line from border to lumen
    cytoplasm = 1 + 0.16 * streaks + 0.1 * _noise(rng, side, 2) + 0.1 * _noise(rng, side, 12)
    slide.lay(cover, patient.cytoplasm[0] * cytoplasm, patient.cytoplasm[1] * cytoplasm)
    inwards = _heading(glands.depth)
    scale = patient.nucleus
    rows = 4.4 + 4.5 * (patient.strata - 1) * (1 + 0.3 * _noise(rng, side, 10)[glands.foot])
    _draw_goblets(slide, rng, patient, inside & (glands.depth > rows + 4) & (glands.depth < height - 2), inwards)
    _draw_lumen(slide, rng, cover, glands.depth - height)
    basal = inside & (glands.depth > 2.5) & (glands.depth < np.maximum(rows, 4)) & (glands.depth < height + 1)
    nuclei = _scatter(rng, basal, 3.3 * scale, 0.97)
    _lay_nuclei(slide, patient, _ellipses(rng, side, nuclei, 3.5 * scale, 1.4 * scale, inwards, 0.2) * cover)


def _height(rng: Generator, glands: _Glands) -> Floats:  # (side, side)
    """Draws the depth at which the lumen starts: 0.5 to 1.1 of the gland's own depth (none from 1 on), unevenly."""
    numbers = np.arange(glands.number.max() + 1)
    deepest = np.asarray(ndimage.maximum(glands.depth, glands.number, numbers))
    height = np.maximum(deepest * rng.uniform(0.5, 1.1, len(numbers)), 8)
    folds = rng.uniform(0.03, 0.28, len(numbers))
    uneven = _noise(rng, len(glands.depth), 7)[glands.foot]
    return height[glands.number] * np.exp(folds[glands.number] * uneven)


def _draw_goblets(slide: _Slide, rng: Generator, patient: _Patient, where: Flags, inwards: Floats) -> None:
    """Draws goblet cells, pale with mucin."""
    side = len(inwards)
    swelling = 1 + 0.35 * patient.goblets
    here = np.clip(patient.goblets * (1 + 0.5 * _noise(rng, side, 20)), 0, 1)
    cells = _scatter(rng, where, 5.6 * swelling, here)
    cover = _ellipses(rng, side, cells, 3.4 * swelling, 2.5 * swelling, inwards)
    slide.lay(cover, 0.12, 0.06, clear=0.3)


def _draw_lumen(slide: _Slide, rng: Generator, cover: Floats, field: Floats) -> None:
    """Draws the lumen, empty or with mucin or debris; the cells' border to it takes more eosin."""
    side = len(field)
    border = np.clip(1.5 - np.abs(field), 0, 1) * cover
    slide.stain[1] += 0.2 * border
    mucin = rng.uniform(0, 0.25) * np.clip(1 + 0.6 * _noise(rng, side, 3), 0, None)
    slide.lay(_cover(field) * cover, mucin, 0.5 * mucin, clear=rng.uniform(0.4, 0.95))
    debris = _scatter(rng, (field > 2) & (cover > 0), 4.5, rng.choice([0, 0.5], p=[0.75, 0.25]))
    slide.lay(0.8 * _ellipses(rng, side, debris, 2.0, 1.5), 0.5, 0.4)


def _photograph(
    stain: Floats,  # (2, size, size)
    rng: Generator,
    patient: _Patient,
) -> NDArray[np.uint8]:  # (size, size, 3)
    """Photographs a slide: light through the stains (Beer–Lambert), blur, noise that grows with the light, 8 bits."""
    uneven = 1 + 0.05 * _noise(rng, stain.shape[1], 30)
    density = np.einsum("srk,sc->rkc", stain * uneven, patient.stains)
    light = ndimage.gaussian_filter(patient.light * np.exp(-density), (patient.blur, patient.blur, 0))
    noisy = light + rng.normal(0, 1, light.shape) * (0.004 + 0.010 * np.sqrt(light))
    return np.clip(np.rint(255 * noisy), 0, 255).astype(np.uint8)
