"""Probes frozen features: what simple classifiers find in them, beside baselines.

    python -m pipelines.probe --model=runs/quickstart
    python -m pipelines.probe --model=RUN --train='pets/train-*' --method=efficient
    python -m pipelines.probe --train_features=train.npy --train_labels=labels.npy --output=DIR

Labelled sets are made by `prepare_data --kind=labelled`. The methods:

- knn: a vote of the ten nearest training examples, by the cosine of standardised features.
- linear: logistic regression of principal components, whitened or not; the usual choice.
- lars_mae, lars_m3ae: a linear layer trained as MAE and the paper's code do, at several rates; for
  comparison with published figures.
- efficient: attention of learned queries to all patches (Psomas et al. 2026); the best choice for
  encoders that learned by reconstruction, and the slowest.
- few_shot: logistic regression of a few examples of each class, over several draws.

Features, penalties and rates are chosen on training examples alone. Writes probe.json and
probe.html, with the classes that are confused, to --output or into the model's folder.
"""

import pathlib
import typing

from m3ae_tpu.command_line import run_program
from m3ae_tpu.errors import UserError, require
from m3ae_tpu.files import Place
from m3ae_tpu.option_flags import define_flag

if typing.TYPE_CHECKING:
    import numpy as np

    from m3ae_tpu.evaluation.probe_methods import ProbeOptions
    from m3ae_tpu.evaluation.probe_sources import ProbeTask

_MODEL = define_flag(
    "model", Place, None, "Workdir of a run, or a folder of import_weights or export_weights."
)
_TRAIN = define_flag("train", str, "", "Labelled shards to learn from; empty: the starter set's.")
_TEST = define_flag(
    "test",
    str,
    "",
    "Labelled shards to score on; empty: a fifth of --train, or the starter set's held-out ones.",
)
_TRAIN_FEATURES = define_flag(
    "train_features",
    pathlib.Path,
    None,
    "Features to learn from, instead of a model: the output of extract_features, an .npy file, or "
    "an .npz file with the arrays features and labels.",
)
_TRAIN_LABELS = define_flag(
    "train_labels",
    pathlib.Path,
    None,
    "Their labels, if they do not lie beside them: an .npy file, or a text file of lines.",
)
_TEST_FEATURES = define_flag(
    "test_features",
    pathlib.Path,
    None,
    "Features to score on; empty: a fifth of the training features.",
)
_TEST_LABELS = define_flag("test_labels", pathlib.Path, None, "Their labels.")
_METHOD = define_flag(
    "method",
    list,
    "linear,knn",
    "Methods, separated by commas: knn, linear, lars_mae, lars_m3ae, efficient, few_shot.",
)
_POOLING = define_flag(
    "pooling",
    str,
    "",
    "Features of a model: cls, mean, cls_mean_max, cls_quarters; of files the name of an "
    "array. Empty: the best in cross-validation; the class token for lars_..., the mean for "
    "few_shot.",
)
_SHOTS = define_flag("shots", list, "1,5,10", "Examples of each class for few_shot.")
_DRAWS = define_flag("draws", int, 5, "Draws of these examples.", at_least=1)
_EPOCHS = define_flag(
    "epochs", int, 0, "Epochs of lars_... and efficient; 0: 90, as published.", at_least=0
)
_BATCH = define_flag(
    "batch_size",
    int,
    0,
    "Most examples of a step of lars_... and efficient; 0: as published. Every example counts once "
    "in an epoch, whatever the size; the rate follows the size.",
    at_least=0,
)
_BASELINES = define_flag(
    "baselines", bool, True, "Probe an untrained encoder and raw pixels too, to compare with."
)
_CACHE = define_flag(
    "max_cache_gb",
    float,
    4.0,
    "Most memory for the patches' features of all examples, for efficient. Above it the encoder "
    "runs in every step.",
    at_least=0.0,
)
_SEED = define_flag("seed", int, 0, "Decides draws, first values and orders.", at_least=0)
_OUTPUT = define_flag(
    "output",
    Place,
    None,
    "Folder of probe.json and probe.html, also gs://BUCKET/FOLDER, made if missing; empty: the "
    "model's.",
)


def main(argv: list[str]) -> None:
    """Probes what the command line names."""
    require(len(argv) == 1, f"{' '.join(argv[1:])} belongs to no flag. Write --model=FOLDER.")
    model, features = _MODEL.value, _TRAIN_FEATURES.value
    require(
        (model is None) != (features is None),
        "Name either a model (--model=WORKDIR) or features in files (--train_features=...).",
    )
    _refuse_others(is_model=model is not None)
    from m3ae_tpu.evaluation.probe_methods import ProbeOptions

    options = ProbeOptions(
        methods=tuple(dict.fromkeys(_METHOD.value)),
        pooling=_POOLING.value,
        shots=_numbers("shots", _SHOTS.value),
        draws=_DRAWS.value,
        epochs=_EPOCHS.value,
        batch_size=_BATCH.value,
        seed=_SEED.value,
    )
    if model is None:
        _probe_files(features, options)
    else:
        _probe_model(model, options)


def _probe_model(model: Place, options: "ProbeOptions") -> None:
    from m3ae_tpu.evaluation.probe import FILE_NAME
    from m3ae_tpu.evaluation.probe_sources import model_task
    from m3ae_tpu.pretrained.loading import load_pretrained
    from m3ae_tpu.run.claim import files_of, output_folder
    from m3ae_tpu.run.workdir import result_file
    from m3ae_tpu.storage.mirror import address_of

    with files_of(model) as folder, output_folder(_OUTPUT.value) as output:
        output = result_file(folder, output, FILE_NAME).parent
        task = model_task(
            load_pretrained(folder),
            str(address_of(folder)),
            _TRAIN.value,
            _TEST.value,
            has_baselines=_BASELINES.value,
            max_cache_bytes=int(_CACHE.value * 2**30),
        )
        _probe(task, options, output)


def _probe_files(features: pathlib.Path, options: "ProbeOptions") -> None:
    from m3ae_tpu.evaluation.probe import FILE_NAME
    from m3ae_tpu.evaluation.probe_files import read_feature_files
    from m3ae_tpu.evaluation.probe_sources import file_task
    from m3ae_tpu.run.claim import output_folder
    from m3ae_tpu.run.workdir import result_file

    with output_folder(_OUTPUT.value) as output:
        if output is not None:
            output = result_file(features.parent, output, FILE_NAME).parent
        train = read_feature_files("--train", features, _TRAIN_LABELS.value, _read_folder)
        test = None
        if _TEST_FEATURES.value is not None:
            test = read_feature_files(
                "--test", _TEST_FEATURES.value, _TEST_LABELS.value, _read_folder
            )
        _probe(file_task(train, test), options, output)


def _read_folder(folder: pathlib.Path) -> "tuple[dict[str, np.ndarray], np.ndarray | None]":
    import numpy as np

    from m3ae_tpu.features.reading import read_features

    found = read_features(folder)
    arrays = {name: found.array(name) for name in found.names}
    # Of all tokens the class token is first; attentive pooling is of patches.
    arrays = {name: each[:, 1:] if each.ndim == 3 else each for name, each in arrays.items()}
    return arrays, np.array(found.labels) if any(found.labels) else None


def _probe(task: "ProbeTask", options: "ProbeOptions", output: pathlib.Path | None) -> None:
    from m3ae_tpu.evaluation.probe import print_results, probe, write_probe
    from m3ae_tpu.report.probe_page import write_page

    results = probe(task, options)
    print_results(results)
    if output is None:
        print("nothing was written: name a folder for probe.json and probe.html, --output=DIR")
        return
    write_probe(results, output)
    page = write_page(results, task.images, output)
    print(f"confused classes: {page}")


def _refuse_others(*, is_model: bool) -> None:
    """Refuses flags that the kind of input does not have."""
    shards = {"train": _TRAIN.value, "test": _TEST.value}
    files = {
        "train_labels": _TRAIN_LABELS.value,
        "test_features": _TEST_FEATURES.value,
        "test_labels": _TEST_LABELS.value,
    }
    for name, value in (files if is_model else shards).items():
        require(
            not value,
            f"--{name} = {value} does not go with --{'model' if is_model else 'train_features'}. "
            "Leave it out.",
        )
    require(
        _TEST_LABELS.value is None or _TEST_FEATURES.value is not None,
        f"--test_labels = {_TEST_LABELS.value} has no features. Name them: --test_features=FILE.",
    )


def _numbers(name: str, words: list[str]) -> tuple[int, ...]:
    try:
        return tuple(sorted({int(word) for word in words}))
    except ValueError:
        raise UserError(
            f"--{name} = {','.join(words)} is not a list of whole numbers. Set --{name}=1,5,10."
        ) from None


def run() -> None:
    """Entry point of the installed command `m3ae-probe`."""
    run_program(main)


if __name__ == "__main__":
    run()
