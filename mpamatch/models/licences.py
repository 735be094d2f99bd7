"""Terms of weights that not everybody may use; they stand where their encoder or tower does."""

from mpamatch.models import towers
from mpamatch.models.encoders import presets


def licence_of(name: str) -> str | None:
    """The terms, in one sentence, of the weights of the encoder or tower called `name`; None if all may use them."""
    preset = presets().get(name)
    return preset.licence if preset else towers.LICENCES.get(name)
