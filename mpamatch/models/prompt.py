"""Text prototypes: class descriptions through a frozen text tower, with learnable context tokens (CoOp)."""

import difflib
import re
from collections.abc import Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Any, cast

import torch
import yaml
from torch import Tensor, nn

from mpamatch.errors import InputError
from mpamatch.files import read_yaml
from mpamatch.models.prompt_controls import distinct, framed, noisy, random_words, shuffled
from mpamatch.models.text_encoders import TextEncoder
from mpamatch.models.towers import BesideTower
from mpamatch.ops.unit import unit

CONTROLS = {"shuffled": shuffled, "random": random_words}
PROMPTS = ("pathology", "pathology-similar", "generic", "generic-distinct", *CONTROLS)
CONTEXT_STD = 0.02  # CoOp (arXiv 2109.01134)
GENERIC = (
    "a histology image of {}",
    "a microscope image of {}",
    "{} in a stained tissue section",
    "a pathology slide that shows {}",
    "a photomicrograph of {} at medium magnification",
    "an H&E image patch of {}",
)
# Each of another wording than any other: classes that are dealt different ones have little in common.
DISTINCT = (
    "a histology image of {}",
    "{} under the microscope",
    "here the pathologist marked {}",
    "what a stained section shows as {}",
    "{} cut by the microtome",
    "this region belongs to {}",
    "close-up view, {}",
    "H&E patch with nothing but {}",
    "an example of {} from a biopsy",
    "every pixel of it is {}",
    "{}, seen at medium magnification",
    "annotated as {} in the slide viewer",
    "a textbook figure of {}",
    "tissue that experts call {}",
)


class TextPrototypes(BesideTower):
    """One unit vector per class: the normalised mean of the unit embeddings of its descriptions.

    Learnable context tokens (CoOp, arXiv 2109.01134) stand before the words of each description; they are all that
    trains. Without any the prototypes are computed once and the tower is not kept.

    Args:
        encoder: frozen text tower; it is no submodule, so its weights are in no checkpoint.
        descriptions: texts of each of the C classes.
        context_tokens: n, the number of context tokens before each description; 0: none.
        class_specific: whether each class has context tokens of its own.

    Attributes:
        context: the context tokens, (n, token_width), or (C, n, token_width) if class_specific; from N(0, .02).
        width: size of a prototype.
        identity: name, source and sha256 of the tower's weights.

    Raises:
        InputError: a class without descriptions, a description too long for the tower, or a negative number of tokens.
    """

    def __init__(
        self,
        encoder: TextEncoder,
        descriptions: Sequence[Sequence[str]],  # C classes, at least one description each
        *,
        context_tokens: int = 1,
        class_specific: bool = False,
    ):
        super().__init__()
        _check(descriptions, context_tokens)
        self.width, self.identity = encoder.width, encoder.identity
        tokens = encoder.tokenize([text for texts in descriptions for text in texts], context_tokens)
        owner = torch.arange(len(descriptions)).repeat_interleave(torch.tensor([len(texts) for texts in descriptions]))
        share = nn.functional.one_hot(owner, len(descriptions)).T.float()
        device = next(encoder.parameters()).device
        self.tokens: Tensor
        self.owner: Tensor
        self.share: Tensor
        self.fixed: Tensor | None
        self.register_buffer("tokens", tokens.to(device), persistent=False)  # (S, L)
        self.register_buffer("owner", owner.to(device), persistent=False)  # (S,) class of each description
        self.register_buffer("share", (share / share.sum(1, keepdim=True)).to(device), persistent=False)  # (C, S)
        self.register_buffer("fixed", None, persistent=False)  # (C, width)
        if context_tokens == 0:
            with torch.no_grad():
                self.fixed = self._mean(encoder.encode(self.tokens))
            return
        self.keep_beside(encoder)
        shape = (context_tokens, encoder.token_width)
        start = torch.empty((len(descriptions), *shape) if class_specific else shape)
        self.context = nn.Parameter(start.normal_(0, CONTEXT_STD).to(device))

    def forward(self) -> Tensor:  # (C, width)
        """Computes the prototypes.

        Returns:
            One float32 unit vector per class, (C, width), also under autocast; the gradient reaches `context`.
        """
        if self.fixed is not None:
            return unit(self.fixed.float())
        context = self.context if self.context.dim() == 2 else self.context[self.owner]
        return self._mean(cast(TextEncoder, self._towers[0]).encode(self.tokens, context))

    def _mean(self, embedding: Tensor) -> Tensor:  # (S, width) -> (C, width)
        """Averages the unit embeddings of each class's descriptions."""
        # product and sum, not a matrix product: autocast would take that to half precision
        return unit((self.share.float()[:, :, None] * unit(embedding.float())).sum(dim=1))


def load_descriptions(
    prompts: str, recipe: str | None, class_names: Sequence[str], seed: int = 0, *, noise: float = 0.0
) -> list[list[str]]:
    """Loads or makes the descriptions of each class.

    Args:
        prompts: "pathology" (the set written for `recipe`), "generic" (templates around the class name), or a file:
            YAML {class: [descriptions]}, or text with lines "class: description". "pathology-similar": the same set
            with one and the same frame of words around every description; "generic-distinct": each class has templates
            of its own. Two controls are made from the pathology set: "shuffled" (each class gets another's) and
            "random" (as many everyday words).
        recipe: name of a set in mpamatch/recipes/prompts, such as "glas"; for what is made of the pathology set.
        class_names: names of the classes. In a file they match whatever their case, and with - or _ for a space.
        seed: which draw of the controls and of noise, at least 0.
        noise: share of all words that everyday words replace, 0 to 1 (`noisy`).

    Returns:
        A list of descriptions for each class, in the order of `class_names`.

    Raises:
        InputError: a class without descriptions, no set for the recipe, a file that cannot be read or describes a class
            that is not among `class_names`, a negative seed, or noise out of its range.
    """
    if seed < 0:
        raise InputError(f"method.prompt_seed: expected at least 0, got {seed}.")
    if not 0 <= noise <= 1:
        raise InputError(f"method.prompt_noise: expected 0 to 1, got {noise}.")
    return noisy(_written(prompts, recipe, class_names, seed), noise, seed)


def _written(prompts: str, recipe: str | None, class_names: Sequence[str], seed: int) -> list[list[str]]:
    """Loads or makes the descriptions before any noise. Raises InputError as `load_descriptions` does."""
    names = [re.sub(r"[\s_]+", " ", name).strip() for name in class_names]
    if prompts == "generic":
        return [[template.format(name) for template in GENERIC] for name in names]
    if prompts == "generic-distinct":
        return distinct(DISTINCT, names)
    if prompts == "pathology":
        return _choose(_recipe_set(recipe), class_names, f"the pathology descriptions of recipe {recipe!r}")
    if prompts == "pathology-similar":
        return framed(_written("pathology", recipe, class_names, seed), names)
    if prompts in CONTROLS:
        return CONTROLS[prompts](_written("pathology", recipe, class_names, seed), seed)
    path = Path(prompts)
    if not path.is_file():
        raise InputError(
            f"prompts {prompts!r}: is no file; give {', '.join(map(repr, PROMPTS))}, or a .yaml or .txt file."
        )
    written = _read_yaml(path) if path.suffix in (".yaml", ".yml") else _read_lines(path)
    ours = {_key(name): name for name in class_names}
    for name in written:
        if _key(name) not in ours:
            raise InputError(f"{path}: class {name!r} is none of the data set's{_nearest(name, class_names)}.")
    return _choose(written, class_names, str(path))


def _check(descriptions: Sequence[Sequence[str]], context_tokens: int) -> None:
    """Raises InputError for a class without descriptions and for a negative number of tokens."""
    if not descriptions or not all(descriptions) or isinstance(descriptions[0], str):
        raise InputError("text prototypes need a list of descriptions for each class, none of them empty.")
    if context_tokens < 0:
        raise InputError(f"context_tokens is {context_tokens}: it must be 0 or more.")


def _recipe_set(recipe: str | None) -> dict[str, list[str]]:
    folder = resources.files("mpamatch.recipes") / "prompts"
    known = sorted(file.name.removesuffix(".yaml") for file in folder.iterdir() if file.name.endswith(".yaml"))
    if recipe not in known:
        raise InputError(
            f"prompts 'pathology': no descriptions were written for recipe {recipe!r} (there are some for "
            f"{', '.join(known)}); use prompts 'generic' or a file of your own."
        )
    return _as_descriptions(yaml.safe_load((folder / f"{recipe}.yaml").read_text(encoding="utf-8")), f"{recipe}.yaml")


def _choose(written: Mapping[str, list[str]], class_names: Sequence[str], source: str) -> list[list[str]]:
    by_key = {_key(name): texts for name, texts in written.items()}
    for name in class_names:
        if _key(name) not in by_key:
            raise InputError(
                f"{source}: no description of class {name!r}{_nearest(name, list(written))}; "
                "add one, or use prompts 'generic'."
            )
    return [by_key[_key(name)] for name in class_names]


def _read_yaml(path: Path) -> dict[str, list[str]]:
    return _as_descriptions(read_yaml(path), str(path))


def _as_descriptions(content: Any, source: str) -> dict[str, list[str]]:
    if isinstance(content, dict) and isinstance(content.get("pathology"), dict):
        content = content["pathology"]
    if not isinstance(content, dict) or not content:
        raise InputError(f"{source}: holds no descriptions; write a list of sentences under each class name.")
    return {str(name): _sentences(texts, f"{source}: class {name!r}") for name, texts in content.items()}


def _sentences(texts: Any, source: str) -> list[str]:
    texts = [texts] if isinstance(texts, str) else texts
    if not isinstance(texts, list) or not texts or not all(isinstance(text, str) and text.strip() for text in texts):
        raise InputError(f"{source} needs a list of descriptions, none of them empty (quote those that hold a colon).")
    return [" ".join(text.split()) for text in texts]


def _read_lines(path: Path) -> dict[str, list[str]]:
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except UnicodeDecodeError:
        raise InputError(f"{path}: is no UTF-8 text.") from None
    written: dict[str, list[str]] = {}
    for number, line in enumerate(lines, start=1):
        if not line.strip() or line.lstrip().startswith("#"):
            continue
        name, colon, text = (piece.strip() for piece in line.partition(":"))
        if not (name and colon and text):
            raise InputError(f"{path}, line {number}: write 'class: description', not {line.strip()!r}.")
        written.setdefault(name, []).append(text)
    if not written:
        raise InputError(f"{path}: holds no descriptions; write a line 'class: description' for each.")
    return written


def _key(name: str) -> str:
    return re.sub(r"[\s_-]+", " ", name).strip().casefold()


def _nearest(name: str, choices: Sequence[str]) -> str:
    near = difflib.get_close_matches(_key(name), [_key(choice) for choice in choices], n=1, cutoff=0.5)
    if near:
        return f" (nearest: {next(choice for choice in choices if _key(choice) == near[0])!r})"
    return f" (it has {', '.join(choices)})"
