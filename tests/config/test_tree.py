"""Guards configs as trees: every field has one name, and an error names it from the root."""

import dataclasses
import json
import typing

import pytest

from m3ae_tpu.config import DataConfig, ModelConfig, PretrainConfig, SourceConfig, TransformerConfig
from m3ae_tpu.config.checks import require_choice
from m3ae_tpu.config.tree import differences, from_json, leaf_types, leaves, replaced
from m3ae_tpu.errors import UserError

SOURCES = (SourceConfig(weight=3.0), SourceConfig(kind="text", shards="texts-*"))
CONFIG = PretrainConfig(data=DataConfig(sources=SOURCES))


def test_leaves_are_the_plain_values_by_dotted_name():
    values = leaves(CONFIG)
    assert (values["seed"], values["model.encoder.num_heads"]) == (0, 12)
    assert (values["data.sources.0.weight"], values["data.sources.1.shards"]) == (3.0, "texts-*")
    assert values["data.crop_area"] == (0.2, 1.0)
    assert not {"model", "data.sources", "model.encoder"} & values.keys()


def test_every_leaf_has_the_type_of_its_annotation():
    types = leaf_types(CONFIG)
    assert types.keys() == leaves(CONFIG).keys()
    assert (types["seed"], types["data.sources.1.weight"]) == (int, float)
    assert types["masking.draw"] == typing.Literal["per_example", "per_batch"]


def test_replaced_values_are_checked_together():
    both = {"model.encoder.width": 36, "model.encoder.num_heads": 3, "data.sources.1.weight": 2.0}
    config = replaced(CONFIG, both)
    assert (config.model.encoder.width, config.model.encoder.num_heads) == (36, 3)
    assert config.data.sources[1] == dataclasses.replace(SOURCES[1], weight=2.0)
    assert replaced(config, {name: leaves(CONFIG)[name] for name in both}) == CONFIG


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model.decoder.width": 30}, r"^model\.decoder\.width = 30 is not a multiple"),
        ({"data.sources.1.text_length": 0}, r"^data\.sources\.1\.text_length = 0 is not positive"),
        ({"num_steps": 0}, r"^num_steps = 0 is not positive"),
        ({"data.image_size": 40}, r"^data\.image_size = 40 is not a multiple of model\.patch_size"),
    ],
)
def test_refused_value_is_named_from_the_root(changes, message):
    with pytest.raises(UserError, match=message):
        replaced(CONFIG, changes)


def test_name_that_is_not_a_leaf_cannot_be_replaced():
    with pytest.raises(KeyError, match="sead"):
        replaced(CONFIG, {"sead": 1})


def test_config_survives_json():
    values = json.loads(json.dumps(dataclasses.asdict(CONFIG)))
    assert from_json(PretrainConfig, values) == CONFIG


def test_a_value_that_may_be_none_is_read_either_way():
    for unroll in (None, 1, 4):
        assert from_json(ModelConfig, {"unroll": unroll}).unroll == unroll


def test_any_dataclass_can_be_read_from_json_and_has_defaults():
    assert from_json(TransformerConfig, {"width": 36, "num_heads": 3}) == TransformerConfig(
        width=36, num_heads=3
    )


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ([], r"^the config = \[\] is not a PretrainConfig"),
        ({"sead": 1}, "^sead is not a field of PretrainConfig"),
        ({"model": {"encoder": {"depth": 3}}}, r"^model\.encoder\.depth is not a field"),
        ({"num_steps": 1.5}, r"^num_steps = 1\.5 is not a int"),
        ({"seed": True}, r"^seed = True is not a int"),
        ({"model": {"unroll": 1.5}}, r"^model\.unroll = 1\.5 is not a int"),
        ({"data": {"crop_area": [0.5]}}, r"^data\.crop_area = \[0\.5\]"),
        ({"data": {"sources": [{"weight": 0}]}}, r"^data\.sources\.0\.weight = 0\.0 is not posit"),
        ({"masking": {"draw": "never"}}, r"^masking\.draw = 'never'"),
        ({"masking": {"image_mask_ratio": 75}}, r"image_mask_ratio = 75\.0 is not .* mean 0\.75"),
    ],
)
def test_json_that_is_not_a_config_is_refused_by_field(values, message):
    with pytest.raises(UserError, match=message):
        from_json(PretrainConfig, values)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: SourceConfig(weight=float("inf")), "weight = inf is not finite"),
        (lambda: SourceConfig(weight=float("nan")), "weight = nan is not finite"),
        (lambda: DataConfig(sources=()), r"sources = \(\) has no set of shards. Name one."),
        (lambda: DataConfig(num_workers=-1), r"num_workers = -1 is not in \[0, inf\). Set 2, the"),
    ],
)
def test_field_is_checked_where_a_config_is_made(make, message):
    with pytest.raises(UserError, match=f"^{message}"):
        make()


@dataclasses.dataclass(frozen=True)
class Toy:
    mode: typing.Literal["slow", "fast"] = "slow"

    def __post_init__(self):
        require_choice(self, "mode")


def test_value_must_be_one_of_its_choices():
    assert Toy(mode="fast").mode == "fast"
    with pytest.raises(UserError, match=r"^mode = quick is not one of slow, fast\. Set slow, the"):
        Toy(mode="quick")  # pyright: ignore[reportArgumentType]


def test_differences_are_phrases_by_name():
    assert differences(now={"a": 1, "b": 2, "c": 3}, was={"b": 2, "c": 4, "d": 5}) == {
        "a": "a = 1 now, was nothing",
        "c": "c = 3 now, was 4",
        "d": "d = nothing now, was 5",
    }
