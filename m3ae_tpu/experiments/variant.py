"""An experiment as plain data: variants of one run, and what the paper found for them."""

import dataclasses
from collections.abc import Mapping
from typing import Any, Literal

from m3ae_tpu.config import PretrainConfig
from m3ae_tpu.config.tree import replaced
from m3ae_tpu.overrides import load_named_config

type Method = Literal["reconstruction", "contrastive", "supervised"]
type Measure = Literal["probe", "ood", "embedding", "attention", "reconstruct"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Setting:
    """A named config, and the fields that differ from it."""

    config: str
    """File of `configs/`."""
    overrides: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    """Values by dotted name."""

    def load(self) -> PretrainConfig:
        """Returns the config with its fields replaced."""
        return replaced(load_named_config(self.config, PretrainConfig), self.overrides)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Variant:
    """One run of an experiment, at both scales."""

    name: str
    """Name in tables, unique in the experiment."""
    starter: Setting
    full: Setting | None
    """None: nothing is launched; `note` says why."""
    method: Method = "reconstruction"
    length: float = 1.0
    """Steps at the starter scale, as a share of the longest run's."""
    paper: Mapping[str, Mapping[str, float]] = dataclasses.field(default_factory=dict)
    """The paper's values, percent, by figure and by version of the paper."""
    note: str = ""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Finding:
    """A finding of the paper: one variant is better than another."""

    text: str
    better: str
    worse: str
    """Names of variants."""
    figure: str = "linear_probe"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Experiment:
    """Variants, and what is compared."""

    name: str
    title: str
    lead: str
    """The setting in the paper, in a sentence or two."""
    source: str
    """Figure or table of the paper."""
    variants: tuple[Variant, ...]
    findings: tuple[Finding, ...] = ()
    measure: Measure = "probe"
    accelerator: str = "v5litepod-256"
    """Slice for the paper's size, as gcloud rents it."""
