"""Features and labels of a probe in files: arrays of NumPy, or a folder of extracted features."""

import dataclasses
import pathlib
from collections.abc import Callable, Mapping

import numpy as np

from m3ae_tpu.errors import UserError, require
from m3ae_tpu.files import DAMAGED_ARRAY

FEATURES, LABELS = "features", "labels"
"""Names of the arrays of an .npz file."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class FeatureFiles:
    """Features of examples, checked, and their labels."""

    path: pathlib.Path
    arrays: Mapping[str, np.ndarray]
    """Floating-point arrays by name: [examples, features], or [examples, tokens, width]."""
    labels: np.ndarray
    """Classes in the order of the rows, as whole numbers or texts."""


def read_feature_files(
    flag: str,
    features: pathlib.Path,
    labels: pathlib.Path | None,
    read_folder: Callable[[pathlib.Path], tuple[dict[str, np.ndarray], np.ndarray | None]],
) -> FeatureFiles:
    """Reads features and labels.

    Args:
        flag: Beginning of the flags' names, for messages: `--train`.
        features: An .npy file; an .npz file with an array `features`, and `labels` if they are not
            in a file of their own; or the output of `extract_features`.
        labels: An .npy file of numbers or texts, an .npz file with `labels`, or a text file with
            one label a line; None: those that lie beside the features.
        read_folder: Reads arrays and labels (None without any) of a folder of features.

    Raises:
        UserError: a file that cannot be read, another shape, a number of labels that differs, or
            numbers that are not finite.
    """
    where = f"{flag}_features = {features}"
    if features.is_dir():
        arrays, beside = read_folder(features)
    else:
        loaded = _load(where, features)
        require(FEATURES in loaded, f"{where} holds labels only. Name a file with features.")
        arrays, beside = {FEATURES: loaded[FEATURES]}, loaded.get(LABELS)
    if labels is not None:
        beside = _read_labels(f"{flag}_labels = {labels}", labels)
    if beside is None:
        raise UserError(f"{where} has no labels beside it. Name them: {flag}_labels=FILE.npy.")
    require(
        beside.ndim == 1 and beside.dtype.kind in "iubU",
        f"Labels of {where} are {beside.dtype} {list(beside.shape)}. Give one whole number or text "
        "for each row.",
    )
    for name, array in arrays.items():
        require(
            len(array) == len(beside),
            f"{where} has {len(array):,} rows, and there are {len(beside):,} labels. "
            "Give one label for each row.",
        )
        arrays[name] = _checked(where if len(arrays) == 1 else f"{where}, {name},", array)
    is_labelled = beside != ""
    require(
        bool(np.all(is_labelled)),
        f"{where} has {int(np.sum(~is_labelled)):,} rows without a label. Leave them out, or name "
        f"labels of all rows: {flag}_labels=FILE.npy.",
    )
    return FeatureFiles(path=features, arrays=arrays, labels=beside)


def _load(where: str, path: pathlib.Path) -> dict[str, np.ndarray]:
    try:
        if path.suffix == ".npy":  # Large files are read as they are used.
            return {FEATURES: np.load(path, mmap_mode="r")}
        with path.open("rb") as file:
            loaded = np.load(file)
            if isinstance(loaded, np.ndarray):
                return {FEATURES: loaded}
            arrays = {name: loaded[name] for name in (FEATURES, LABELS) if name in loaded.files}
            names = ", ".join(loaded.files)
    except OSError as error:
        raise UserError(f"{where} cannot be read ({error.strerror or error}).") from None
    except DAMAGED_ARRAY as error:
        raise UserError(
            f"{where} is not an array of NumPy ({str(error)[:80]}). Name an .npy or .npz file."
        ) from None
    require(
        bool(arrays),
        f"{where} holds the arrays {names}. Save them as np.savez(FILE, features=..., labels=...).",
    )
    return arrays


def _checked(where: str, array: np.ndarray) -> np.ndarray:
    require(
        array.ndim in (2, 3) and array.size > 0 and array.dtype.kind in "fiub",
        f"{where} is an array {array.dtype} {list(array.shape)}. Give numbers "
        "[examples, features], or [examples, tokens, width] for attentive probing.",
    )
    if array.dtype.kind in "iub" or array.dtype.itemsize > 4 or array.ndim == 2:
        array = array.astype(np.float32)
    for start in range(0, len(array), 4_096):
        rows = array[start : start + 4_096].reshape(len(array[start : start + 4_096]), -1)
        is_finite = np.isfinite(rows).all(axis=1)
        if not is_finite.all():
            row = start + int(np.argmin(is_finite))
            raise UserError(
                f"{where} has a number in row {row} that is not finite (NaN or infinite). "
                "Leave the row out, or compute it again."
            )
    return array


def _read_labels(where: str, path: pathlib.Path) -> np.ndarray:
    if path.suffix in (".txt", ".csv"):
        try:
            lines = path.read_text().splitlines()
        except OSError as error:
            raise UserError(f"{where} cannot be read ({error.strerror}).") from None
        except ValueError:
            raise UserError(f"{where} is not UTF-8 text. Save it as UTF-8.") from None
        return np.array([line.strip() for line in lines if line.strip()], str)
    loaded = _load(where, path)
    return np.asarray(loaded.get(LABELS, loaded.get(FEATURES)))
