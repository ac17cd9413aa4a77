"""The model of the package, made of a finished run: weights, scores, digests, card."""

import json
import pathlib
import subprocess
from typing import Any

import numpy as np

from m3ae_tpu.config import PretrainConfig
from m3ae_tpu.config.tree import differences, leaves
from m3ae_tpu.data.manifest import MANIFEST
from m3ae_tpu.data.records import Record
from m3ae_tpu.data.shards import open_shards
from m3ae_tpu.errors import require
from m3ae_tpu.evaluation.evaluate import (
    TEST_SHARDS,
    TRAIN_SHARDS,
    evaluate_run,
    print_figures,
)
from m3ae_tpu.evaluation.results import EVALUATION
from m3ae_tpu.files import Place, atomic_write, file_sha256
from m3ae_tpu.model.m3ae import Features
from m3ae_tpu.pretrained.loading import load_pretrained
from m3ae_tpu.pretrained.model_folder import PARAMETERS, new_folder, write_model_folder
from m3ae_tpu.pretrained.pretrained import Pretrained
from m3ae_tpu.run.claim import files_of
from m3ae_tpu.run.shipped import STARTER
from m3ae_tpu.run.stages import report_stages
from m3ae_tpu.run.workdir import CONFIG, describe_run
from m3ae_tpu.train.card import size
from m3ae_tpu.weights.model_card import write_card
from m3ae_tpu.weights.plain_model import float32_arrays
from m3ae_tpu.weights.usage import usage_of

TOLERANCE = 1e-2
"""Largest difference of a feature that rounding the weights may make."""

_DTYPE = np.float16  # Half the size; bfloat16 would round eight times as much.
_COMPARED = 16
_NUM_KNOWN, _NUM_VALUES = 3, 4
# What a run may do otherwise than its config and still be the run of this config.
_FREE = ("checkpoint.", "logging.", "probe.", "mesh.", "data.num_workers", "data.timeout_seconds")
_LICENCE = "The weights are under Apache-2.0 too."


def make_starter_model(
    model: Place,
    output: pathlib.Path,
    config: PretrainConfig,
    *,
    config_name: str,
    changes: list[str],
    overwrite: bool = False,
    train_shards: str = TRAIN_SHARDS,
    test_shards: str = TEST_SHARDS,
) -> None:
    """Makes a model folder of a finished run, with its weights rounded to float16.

    Beside the folder's usual files it holds `evaluation.json`, measured on the rounded weights, and
    `manifest.json`: config, commit, versions, digests, and some features to compare with. The
    tokenizer is not copied: it is the package's.

    Args:
        model: Workdir of the run.
        output: The folder.
        config: The settings that the run must have.
        config_name: Name of the config that they began with.
        changes: The command line's changes of it.
        overwrite: Replaces a model folder in `output`.
        train_shards: Labelled shards that probes learn from.
        test_shards: Labelled shards that are scored, and whose features are compared.

    Raises:
        UserError: the run is of another config, is not finished, or has another tokenizer than the
            package; the folder cannot be written; or rounding changes the features.
    """
    with (
        new_folder("--output", output, replaces_model=overwrite) as folder,
        files_of(model) as source,
        report_stages() as report,
    ):
        report("loading the run")
        run = load_pretrained(source)
        _require_run_of(config, run, str(model), config_name)
        packed = _write_rounded(folder, run)
        shards = open_shards(test_shards)
        examples = [shards[index] for index in range(min(_COMPARED, len(shards)))]
        largest, scale = _compare(run, packed, examples)
        figures = evaluate_run(packed, report, train_shards=train_shards, test_shards=test_shards)
        atomic_write(folder / EVALUATION, _json(figures))
        _write_manifest(
            folder,
            {
                "config": config_name,
                "changes": changes,
                "seed": config.seed,
                "steps": packed.step,
                "commit": _commit(),
                "versions": packed.versions,
                "parameters": size(packed.model),
                "stored_as": np.dtype(_DTYPE).name,
                "parameters_sha256": packed.digest,
                "tokenizer_sha256": "" if packed.tokenizer is None else packed.tokenizer.sha256,
                "features": {
                    "shards": test_shards,
                    "values": known_features(packed, examples[:_NUM_KNOWN]),
                },
            },
        )
        write_card(
            folder,
            packed,
            usage=usage_of("safetensors", packed, STARTER),
            figures=figures,
            checks=f"The weights were rounded to {np.dtype(_DTYPE).name}, and the scores are of "
            f"the rounded ones.\nIt moved features of {len(examples)} held-out examples by at most "
            f"{largest:.1e}, where values are up to {scale:.2g}.",
            weights_licence=_LICENCE,
        )
        num_bytes = sum(path.stat().st_size for path in folder.iterdir())
    print_figures(figures)
    print(f"{output}: {num_bytes:,} bytes; rounding moved features by at most {largest:.1e}")


def known_features(model: Pretrained, examples: list[Record]) -> dict[str, list[list[float]]]:
    """Returns the first features of pairs, to four decimals: a check of weights and preprocessing.

    Args:
        model: The model.
        examples: Pairs; the first caption of each counts.
    """
    features = _encode(model, examples)
    return {
        name: np.round(getattr(features, name)[:, :_NUM_VALUES].astype(float), 4).tolist()
        for name in ("cls", "image_mean", "text_mean")
    }


def _encode(model: Pretrained, examples: list[Record]) -> Features:
    images = [example.image for example in examples]
    return model.encode(images=images, texts=[example.captions[0] for example in examples])


def _require_run_of(config: PretrainConfig, run: Pretrained, model: str, config_name: str) -> None:
    changed = differences(now=leaves(config), was=leaves(run.config))
    others = [phrase for name, phrase in changed.items() if not name.startswith(_FREE)]
    require(
        not others,
        f"--model = {model} is not a run of --config = {config_name}: "
        f"{'; '.join(others[:3])}. Name its run, or give the values that this one had.",
    )
    require(
        run.step == config.num_steps,
        f"--model = {model} has finished {run.step:,} of {config.num_steps:,} steps. "
        "Train it to its end.",
    )
    require(
        run.task.has_pairs,
        f"--model = {model} has not learned pairs, and the model of the package encodes images and "
        "texts together. Name another run.",
    )


def _write_rounded(folder: pathlib.Path, run: Pretrained) -> Pretrained:
    """Writes the model folder of a run with rounded weights, and returns the model read back.

    Raises:
        UserError: the run's tokenizer is not the one that its config names.
    """
    tokenizer = b"" if run.tokenizer is None else run.tokenizer.model
    write_model_folder(
        folder,
        run.config,
        {name: array.astype(_DTYPE) for name, array in float32_arrays(run).items()},
        step=run.step,
        run=describe_run(run.config, tokenizer=tokenizer) | {"versions": run.versions},
    )
    return load_pretrained(folder)


def _compare(run: Pretrained, packed: Pretrained, examples: list[Record]) -> tuple[float, float]:
    """Returns the largest difference of features that rounding makes, and the largest feature.

    Raises:
        UserError: it is more than the tolerance.
    """
    wanted, found = (_encode(model, examples).tokens for model in (run, packed))
    largest, scale = float(np.abs(found - wanted).max()), float(np.abs(wanted).max())
    require(
        largest <= TOLERANCE,
        f"Rounding the weights moves features by {largest:.2g}, where values are up to "
        f"{scale:.2g}. Nothing was written.",
    )
    return largest, scale


def _write_manifest(folder: pathlib.Path, facts: dict[str, Any]) -> None:
    digests = {name: file_sha256(folder / name) for name in (PARAMETERS, CONFIG, EVALUATION)}
    atomic_write(folder / MANIFEST, _json(facts | {"sha256": digests}))


def _json(values: dict[str, Any]) -> str:
    return json.dumps(values, indent=2, allow_nan=False) + "\n"


def _commit() -> str:
    """Returns the commit of this checkout, with `-dirty` behind it after changes; empty if none."""
    command = ["git", "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    try:
        done = subprocess.run(
            command, cwd=pathlib.Path(__file__).parent, capture_output=True, text=True, check=True
        )
    except (OSError, subprocess.CalledProcessError):
        return ""
    return done.stdout.strip()
