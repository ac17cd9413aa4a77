"""The form of an evaluation: figures that it measures, and rows that it shows of them.

An evaluation is a module with the functions `start` and `rows`, listed in `evaluate.EVALUATIONS`.
"""

import concurrent.futures
import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, Literal, Protocol

from m3ae_tpu.data.labelled import LabelledExamples
from m3ae_tpu.data.shards import Shards
from m3ae_tpu.model.m3ae import M3AE
from m3ae_tpu.pretrained.pretrained import Pretrained
from m3ae_tpu.probing.scores import Targets

type Figures = dict[str, Any]
"""Numbers and names by key, ready for `evaluation.json`. Shares are of 1."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Subject:
    """A trained run, and the examples that it is measured on."""

    run: Pretrained
    untrained: M3AE
    """The run's network with the random weights of its seed."""
    train: LabelledExamples
    """Examples that probes learn from; the run may have seen them, without labels."""
    test: LabelledExamples
    """Examples that everything is scored on; they decide nothing."""
    train_shards: Shards
    test_shards: Shards
    targets: Targets
    """The classes of both."""
    report: Callable[[str], None]
    """Called with a line at each stage."""
    threads: concurrent.futures.Executor
    """For probes that need no device: they run while the devices compute the next features."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Row:
    """One figure of a run beside those that it is compared with, as terminal and report show it."""

    title: str
    """The quantity, as `Linear probe, images`."""
    values: Mapping[str, float]
    """By name; the run's own value comes first. Empty for a figure that was left out."""
    section: Literal["features", "reconstruction"]
    """Section of the report that shows it."""
    unit: Literal["accuracy", "share", "loss"]
    """`accuracy`: share of the test examples, with a standard error; `share`: of anything else."""
    note: str = ""
    """A sentence on how it was measured, or why it was left out."""
    level: Literal["headline", "normal", "detail"] = "normal"
    """Headlines also stand at the top of the report; details are in the report alone, folded."""
    num_examples: int | None = None
    """Test examples of an accuracy; None: all."""

    @property
    def baselines(self) -> list[tuple[str, float]]:
        """Names and values of those that the run is compared with, the best first."""
        others = list(self.values.items())[1:]
        return sorted(others, key=lambda item: item[1], reverse=self.unit != "loss")


class Evaluation(Protocol):
    """A module that measures something of a run."""

    def start(self, subject: Subject, /) -> Callable[[], Figures]:
        """Computes what needs a device, starts the rest, and returns a function that waits for the
        figures.

        There are none for a run that lacks what is measured. A figure `left_out/NAME` is a
        sentence: why the examples do not allow figure NAME.
        """
        ...

    def rows(self, figures: Mapping[str, Any], /) -> list[Row]:
        """Returns rows for the figures of an `evaluation.json`, as far as they are there."""
        ...
