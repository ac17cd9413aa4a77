"""Guards the ranges of a config's numbers: what is not finite is refused, by the field's name."""

import pytest

from m3ae_tpu.config import DataConfig, ModelConfig, PretrainConfig, SourceConfig
from m3ae_tpu.config.tree import leaves, replaced
from m3ae_tpu.errors import UserError

CONFIG = PretrainConfig()
FLOATS = [
    name
    for name, value in leaves(CONFIG).items()
    if isinstance(value, float) or (isinstance(value, tuple) and isinstance(value[0], float))
]
MAY_BE_INFINITE = {"data.timeout_seconds"}


def with_number(name, number):
    """Returns the config with a number in a field, and in its last place if it has several."""
    value = leaves(CONFIG)[name]
    return replaced(CONFIG, {name: (*value[:-1], number) if isinstance(value, tuple) else number})


@pytest.mark.parametrize("number", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("name", FLOATS)
def test_numbers_that_are_not_finite_are_refused_by_name(name, number):
    if name in MAY_BE_INFINITE and number > 0:
        with_number(name, number)
        return
    with pytest.raises(UserError, match=rf"^{name} = .* is not|^{name} = .* that is not"):
        with_number(name, number)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("image_mean", (123.7, 116.3, 103.5)),
        ("image_std", (0.0, 0.3, 0.3)),
        ("image_std", (1e-300, 0.3, 0.3)),
    ],
)
def test_statistics_of_pixels_are_on_a_scale_of_0_to_1(field, value):
    with pytest.raises(UserError, match=rf"^{field} = .*, the default"):
        DataConfig(**{field: value})


def test_stored_positions_are_enough_for_every_token_of_a_text():
    model = ModelConfig(stored_text_positions=4)
    message = r"^model\.stored_text_positions = 4 .* the 64 tokens"
    with pytest.raises(UserError, match=message):
        PretrainConfig(model=model)
    PretrainConfig(model=model, data=DataConfig(sources=(SourceConfig(kind="image"),)))
    PretrainConfig(model=ModelConfig(stored_image_positions=4, stored_decoder_positions=9))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model.encoder.num_layers": 0}, r"^model\.encoder\.num_layers = 0 is not positive"),
        ({"model.decoder.num_layers": -1}, r"^model\.decoder\.num_layers = -1 is not in"),
        ({"model.stored_image_positions": 5}, r"^model\.stored_image_positions = 5 .*Set 4\."),
        ({"model.stored_decoder_positions": 8}, r"^model\.stored_decoder_.* = 8 .*Set 9\."),
        (
            {"model.decoder.num_layers": 0, "model.stored_decoder_positions": 4},
            r"^model\.stored_decoder_positions = 4 belongs to a decoder",
        ),
    ],
)
def test_sizes_that_build_no_model_are_refused_by_name(change, message):
    with pytest.raises(UserError, match=message):
        replaced(CONFIG, change)


def test_a_model_may_be_an_encoder_alone():
    assert replaced(CONFIG, {"model.decoder.num_layers": 0}).model.decoder.num_layers == 0
