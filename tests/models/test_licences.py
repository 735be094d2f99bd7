"""Which terms go with an encoder that was trained from published weights."""

import pytest

from mpamatch.models.encoders import presets
from mpamatch.models.licences import short, terms_of_encoder


@pytest.mark.parametrize(
    ("encoder", "weights", "expected"),
    [
        ("uni", "UNI.bin", "CC BY-NC-ND 4.0"),
        ("uni", None, None),
        ("small_hybrid", "mine.safetensors", None),
        ("tf_efficientnet_lite0", "offline", "Apache-2.0"),
        ("tf_efficientnet_lite0", "mine.safetensors", None),
    ],
)
def test_terms_of_the_weights_an_encoder_starts_from(encoder, weights, expected):
    terms = terms_of_encoder(presets()[encoder], weights)
    assert (terms and short(terms)) == expected
