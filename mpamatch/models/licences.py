"""Terms of published weights; each is written beside its encoder or tower."""

import re

from mpamatch.models.encoders import Preset, presets
from mpamatch.models.encoders.sources import OFFLINE
from mpamatch.models.published import TERMS


def licence_of(name: str) -> str | None:
    """Returns the terms of use of an encoder's or tower's weights in one sentence; None if none are written down."""
    preset = presets().get(name)
    return preset.licence if preset else TERMS.get(name)


def short(terms: str) -> str:
    """Returns the name of the licence in a sentence such as "UNI weights: CC BY-NC-ND 4.0, for …"."""
    return re.split(r",|;| \(|\.$", terms.partition(": ")[2] or terms)[0].strip()


def licence_of_encoder(preset: Preset, weights: str | None) -> str | None:
    """Returns the licence of the weights that an encoder was trained from, or their terms if these are published so.

    Args:
        preset: what it was built from.
        weights: as the configuration names them; None: random, which have no terms.

    Returns:
        The words; None if the weights are random or no terms are known.
    """
    if weights is None:
        return None
    known = presets().get(preset.name)
    offline = known.offline if known and weights == OFFLINE else None
    return offline.licence if offline else preset.licence


def terms_of_encoder(preset: Preset, weights: str | None) -> str | None:
    """Returns what `licence_of_encoder` does as a sentence, with the encoder's name."""
    terms = licence_of_encoder(preset, weights)
    return f"{preset.name} weights: {terms}." if terms and terms != preset.licence else terms
