"""Classes of labelled shards: names and numbers, and what is done to their images."""

import collections
import dataclasses
import functools
import os
from collections.abc import Mapping, Sequence

import rich.progress

from m3ae_tpu.data.manifest import read_manifest
from m3ae_tpu.data.rand_augment import RandAugment
from m3ae_tpu.data.shards import DamagedRecordError, Shards
from m3ae_tpu.errors import UserError, require

_MANY = 20_000
"""Records that are read without a progress bar."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Labelling:
    """The classes of a run that learns them, and how its images are changed."""

    classes: tuple[str, ...]
    """Names of the classes, in the order of their numbers."""
    augment: RandAugment | None = None
    """Changes the crops; None leaves them as they are."""

    @functools.cached_property
    def _numbers(self) -> dict[str, int]:
        return {name: number for number, name in enumerate(self.classes)}

    def number(self, name: str) -> int:
        """Returns the number of a class.

        Raises:
            ValueError: it is not among the classes, or empty.
        """
        if name not in self._numbers:
            problem = f"its class {name} is not among the run's" if name else "it has no class"
            raise ValueError(problem)
        return self._numbers[name]


def count_classes(shards: Shards) -> dict[str, int]:
    """Returns the number of records of each class, sorted by name.

    Where the manifests beside the shards count the classes, and the shards are all of theirs, no
    record is read. Damaged records do not count.

    Raises:
        UserError: a record has no class.
    """
    counted = _count_of_manifests(shards.paths)
    if counted is not None:
        return dict(sorted(counted.items()))
    counts: collections.Counter[str] = collections.Counter()
    for index in rich.progress.track(
        range(len(shards)), "reading classes", disable=len(shards) < _MANY, transient=True
    ):
        try:
            name = shards[index].label_name
        except DamagedRecordError:
            continue
        require(
            bool(name),
            f"shards = {shards.pattern} hold a record without a class ({shards.place(index)}). "
            "Make labelled shards: python -m pipelines.prepare_data --kind=labelled.",
        )
        counts[name] += 1
    return dict(sorted(counts.items()))


def _count_of_manifests(paths: Sequence[str]) -> Mapping[str, int] | None:
    """Returns the sum of the manifests' classes; None where they do not tell."""
    counts: collections.Counter[str] = collections.Counter()
    by_folder = collections.defaultdict(set)
    for path in paths:
        by_folder[os.path.dirname(path)].add(os.path.basename(path))
    for folder, names in by_folder.items():
        try:
            manifest = read_manifest(folder)
        except UserError:
            return None
        classes = manifest.get("classes")
        if not isinstance(classes, dict) or not classes or names != set(manifest["shards"]):
            return None
        counts.update(classes)
    return counts
