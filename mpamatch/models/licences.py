"""Terms of weights that not everybody may use; each is written beside its encoder or tower."""

from mpamatch.models.encoders import presets
from mpamatch.models.published import TERMS


def licence_of(name: str) -> str | None:
    """Returns the terms of use of an encoder's or tower's weights in one sentence; None if everybody may use them."""
    preset = presets().get(name)
    return preset.licence if preset else TERMS.get(name)
