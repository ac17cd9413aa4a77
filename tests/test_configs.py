"""Guards the named runs: a changed default shows in the text of every run that it touches.

After an intended change, write the texts again and read the diff:

    UPDATE_GOLDEN=1 python -m pytest tests/test_configs.py
"""

import ast
import dataclasses
import json
import os
import pathlib

import pytest
from absl import flags
from repository import ROOT, tracked_files

from m3ae_tpu.config import FinetuneConfig, PretrainConfig, RunConfig
from m3ae_tpu.config.tree import leaves
from m3ae_tpu.overrides import config_names, load_named_config

GOLDEN = pathlib.Path(__file__).parent / "golden" / "configs"
# A user's own file in configs/ has no text on file until the texts are written again.
NAMES = (
    config_names()
    if os.environ.get("UPDATE_GOLDEN")
    else sorted(path.stem for path in GOLDEN.iterdir())
)


@pytest.mark.parametrize("name", NAMES)
def test_named_config_is_the_one_on_file(name):
    text = json.dumps(dataclasses.asdict(load_named_config(name, RunConfig)), indent=2) + "\n"
    path = GOLDEN / f"{name}.txt"
    if os.environ.get("UPDATE_GOLDEN"):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    assert text == path.read_text()


def test_every_tracked_config_has_a_text_on_file():
    tracked = tracked_files("configs/*.py")
    if tracked is None:
        pytest.skip("this folder is not a git checkout")
    names = {path.stem for path in tracked} - {"__init__"}
    assert sorted(names - {path.stem for path in GOLDEN.iterdir()}) == []


@pytest.mark.parametrize("name", NAMES)
def test_docstring_contains_the_command(name):
    doc = (
        ast.get_docstring(ast.parse((ROOT / "configs" / f"{name}.py").read_text()), clean=False)
        or ""
    )
    doc = doc.replace(" \\\n        ", " ")
    if isinstance(load_named_config(name, RunConfig), FinetuneConfig):
        assert f"    python -m pipelines.finetune --config={name} --model=runs/" in doc
        assert f" --workdir=runs/{name}\n" in doc
    else:
        assert f"    python -m pipelines.pretrain --config={name} --workdir=runs/{name}" in doc


@pytest.mark.parametrize("config", [PretrainConfig(), FinetuneConfig()])
def test_no_field_is_hidden_by_a_launch_flag(config):
    assert not set(leaves(config)) & set(flags.FLAGS)


def test_sizes_are_the_papers():
    sizes = {}
    for name in ("small", "base", "large", "huge"):
        encoder = load_named_config(f"m3ae_{name}", PretrainConfig).model.encoder
        sizes[name] = (encoder.width, encoder.num_layers, encoder.num_heads)
    assert sizes == {
        "small": (384, 12, 6),
        "base": (768, 12, 12),
        "large": (1024, 24, 16),
        "huge": (1280, 32, 16),
    }


@pytest.mark.parametrize("name", [name for name in NAMES if name.startswith(("m3ae_", "mae_"))])
def test_papers_hyper_parameters(name):
    config = load_named_config(name, PretrainConfig)
    decoder, is_fast = config.model.decoder, name.endswith("_fast")
    assert (config.model.patch_size, config.data.image_size, config.batch_size) == (16, 256, 4096)
    assert (decoder.width, decoder.num_heads) == (512, 16)
    shallow = (decoder.num_layers, config.masking.image_predicted_share)
    assert shallow == ((2, 0.5) if is_fast else (8, 1.0))
    assert (config.masking.image_mask_ratio, config.masking.text_mask_ratio) == (0.75, 0.75)
    assert (config.loss.image_weight, config.loss.text_weight) == (1.0, 0.5)
    assert (config.optimizer.beta2, config.optimizer.weight_decay) == (0.95, 0.05)
    assert (config.optimizer.base_learning_rate, config.optimizer.warmup_fraction) == (1.5e-4, 0.1)


@pytest.mark.parametrize(
    ("name", "peak", "layer_decay", "drop_path", "epochs", "warmup_epochs"),
    [
        ("finetune_mae_base", 2e-3, 0.65, 0.1, 100, 5),
        ("finetune_mae_large", 4e-3, 0.75, 0.2, 50, 5),
        ("finetune_m3ae_large", 1e-3, 0.6, 0.1, 100, 5),
    ],
)
def test_recipes_of_fine_tuning(name, peak, layer_decay, drop_path, epochs, warmup_epochs):
    config = load_named_config(name, FinetuneConfig)
    optimizer, augmentation = config.optimizer, config.augmentation
    assert optimizer.base_learning_rate * config.batch_size / 256 == pytest.approx(peak)
    assert (optimizer.layer_decay, config.drop_path) == (layer_decay, drop_path)
    assert config.num_steps == epochs * (1_281_167 // 1_024)
    assert optimizer.warmup_fraction * epochs == pytest.approx(warmup_epochs)
    assert (optimizer.beta1, optimizer.beta2, optimizer.weight_decay) == (0.9, 0.999, 0.05)
    assert (augmentation.mixup_alpha, augmentation.cutmix_alpha) == (0.8, 1.0)
    assert config.label_smoothing == 0.1
    assert augmentation.rand_augment_magnitude == 9
    assert augmentation.erasing_probability == (0.0 if "m3ae" in name else 0.25)
    assert config.head.pooling == ("cls" if "m3ae" in name else "image_mean")
