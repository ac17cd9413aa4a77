"""Guards the choice of poolings and layers: what does not exist is refused by name."""

import pytest

from m3ae_tpu.errors import UserError
from m3ae_tpu.features.options import FeatureOptions


def test_layers_are_counted_from_either_end():
    assert FeatureOptions(layers="1,6,-1").layer_numbers(12) == (1, 6, 12)
    assert FeatureOptions(layers="-1, 12").layer_numbers(12) == (12,)
    assert FeatureOptions(layers="all").layer_numbers(3) == (1, 2, 3)


@pytest.mark.parametrize("layers", ["0", "13", "-13", "1,x", "1.5", ","])
def test_a_layer_that_does_not_exist_is_refused(layers):
    with pytest.raises(UserError, match=r"--layers = .* names"):
        FeatureOptions(layers=layers).layer_numbers(12)


def test_images_are_pooled_over_patches_and_texts_over_words():
    options = FeatureOptions()
    assert [options.poolings(kind) for kind in ("image", "both", "text")] == [
        ("image_mean",),
        ("image_mean",),
        ("text_mean",),
    ]
    assert FeatureOptions(pooling="cls, tokens,cls").poolings("image") == ("cls", "tokens")


@pytest.mark.parametrize(
    ("options", "kind", "message"),
    [
        (FeatureOptions(pooling="max"), "image", r"--pooling = max names max\. Use one of: cls"),
        (FeatureOptions(pooling=","), "image", "names nothing"),
        (FeatureOptions(pooling="text_mean"), "image", "asks for text_mean, but .* kind image"),
        (FeatureOptions(pooling="image_mean"), "text", "asks for image_mean, but .* kind text"),
        (FeatureOptions(pooling="cls,tokens", concatenate=True), "image", "cannot be concatenated"),
    ],
)
def test_a_pooling_that_does_not_fit_is_refused(options, kind, message):
    with pytest.raises(UserError, match=message):
        options.poolings(kind)
