"""Features read back from their folder: arrays, index and manifest."""

import dataclasses
import functools
import json
import pathlib
from typing import Any

import numpy as np
import safetensors
import safetensors.numpy

from m3ae_tpu.errors import UserError, require
from m3ae_tpu.features.parts import FORMAT, FORMAT_VERSION, INDEX, MANIFEST, import_pyarrow
from m3ae_tpu.files import DAMAGED_ARRAY


@dataclasses.dataclass(frozen=True, kw_only=True)
class FeatureSet:
    """The features in a folder; see `read_features`."""

    folder: pathlib.Path
    manifest: dict[str, Any]
    """Model, options, arrays and counts."""

    def __len__(self) -> int:
        return self.manifest["rows"]

    @functools.cached_property
    def index(self) -> list[dict[str, Any]]:
        """Part, row, id, place and, where there is one, label of each row.

        Raises:
            UserError: the file is damaged.
        """
        path = self.folder / INDEX
        try:
            lines = [json.loads(line) for line in path.read_text().splitlines()]
        except (OSError, ValueError) as error:
            raise UserError(f"{path} cannot be read ({error}). Extract again.") from None
        require(
            len(lines) == len(self),
            f"{path} has {len(lines):,} lines, {len(self):,} were written. Extract again.",
        )
        return lines

    @property
    def labels(self) -> list[str]:
        """Class of each row, "" for one without."""
        return [line.get("label", "") for line in self.index]

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the arrays."""
        return tuple(self.manifest["arrays"])

    def array(self, name: str = "") -> np.ndarray:
        """Returns an array of all rows in order, as it was stored.

        Args:
            name: Its name; empty: the first one.

        Raises:
            UserError: there is none of that name, or a part is missing or damaged.
        """
        name = name or self.names[0]
        require(
            name in self.names or name == "token_is_valid",
            f"{self.folder} holds the features {', '.join(self.names)}, not {name}. "
            "Name one of those, or extract again.",
        )
        parts = [self._of_part(part, name) for part in self.manifest["parts"] if part["rows"]]
        return np.concatenate(parts)

    def _of_part(self, part: dict[str, Any], name: str) -> np.ndarray:
        files = [*part["files"]]
        own = [file for file in files if file == f"{part['name']}.{name}.npy"]
        path = self.folder / (own or files)[0]
        try:
            array = _read(path, name)
        except (OSError, *DAMAGED_ARRAY, safetensors.SafetensorError) as error:
            if isinstance(error, UserError):
                raise
            raise UserError(
                f"{path} is missing or damaged ({error}). Extract again: parts that are whole "
                "are kept."
            ) from None
        require(
            len(array) == part["rows"],
            f"{path} has {len(array):,} rows, {part['rows']:,} were written. Extract again.",
        )
        return array


def read_features(folder: pathlib.Path) -> FeatureSet:
    """Opens a folder that `extract_features` wrote.

    Raises:
        UserError: it is none, of another version, or not finished.
    """
    path = folder / MANIFEST
    try:
        manifest = json.loads(path.read_text())
    except OSError:
        raise UserError(
            f"{folder} holds no finished features: it has no {MANIFEST}. "
            "Make them, or go on: python -m pipelines.extract_features."
        ) from None
    except ValueError as error:
        raise UserError(f"{path} is damaged ({error}). Extract again.") from None
    is_ours = isinstance(manifest, dict) and manifest.get("format") == FORMAT
    require(is_ours, f"{path} is not of features. Name the output of extract_features.")
    version = manifest.get("format_version")
    require(
        version == FORMAT_VERSION,
        f"{path} has format_version = {version}, and this version of m3ae-tpu reads "
        f"{FORMAT_VERSION}. Extract again.",
    )
    return FeatureSet(folder=folder, manifest=manifest)


def _read(path: pathlib.Path, name: str) -> np.ndarray:
    if path.suffix == ".npy":
        return np.load(path, allow_pickle=False)
    if path.suffix == ".safetensors":
        with safetensors.safe_open(path, "numpy") as file:
            return file.get_tensor(name)
    _, parquet = import_pyarrow()
    column = parquet.read_table(path, columns=[name])[name].combine_chunks()
    return column.flatten().to_numpy(zero_copy_only=False).reshape(len(column), -1)
