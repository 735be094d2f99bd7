"""Terms of published weights; each is written beside its encoder or tower."""

import re

from mpamatch.models.encoders import presets
from mpamatch.models.published import TERMS


def licence_of(name: str) -> str | None:
    """Returns the terms of use of an encoder's or tower's weights in one sentence; None if none are written down."""
    preset = presets().get(name)
    return preset.licence if preset else TERMS.get(name)


def short(terms: str) -> str:
    """Returns the name of the licence in a sentence such as "UNI weights: CC BY-NC-ND 4.0, for …"."""
    return re.split(r",|;| \(|\.$", terms.partition(": ")[2] or terms)[0].strip()
