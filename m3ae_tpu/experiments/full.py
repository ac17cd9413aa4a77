"""An experiment at the paper's size: the commands of its runs on a pod, and what they need."""

import pathlib
import textwrap
from typing import NamedTuple

from m3ae_tpu.batch import mixture
from m3ae_tpu.config import PretrainConfig
from m3ae_tpu.config.tree import leaves
from m3ae_tpu.errors import require
from m3ae_tpu.experiments.variant import Experiment, Setting, Variant
from m3ae_tpu.files import atomic_write
from m3ae_tpu.kernels.chips import CHIPS
from m3ae_tpu.measure.rehearsal import config_batch_shapes
from m3ae_tpu.parallel.slices import TpuSlice, find_slice
from m3ae_tpu.train.card import num_tokens, reference_model, size
from m3ae_tpu.train.pretraining import pretraining
from m3ae_tpu.values import as_typed

FILE_NAME = "full.md"
ZONE = "us-west4-a"
BUCKET = "gs://BUCKET"
UTILISATION = 0.2
"""Share of the chips' peak: `m3ae_base` on v5e:16x16, as compiled in `docs/scaling.md`."""
_BYTES_OF_PARAMETER = 12  # float32: value and two moments.
_KEPT_WIDTHS = 10  # A block keeps input, qkv, attention, its sum, and four widths of the MLP.


class Need(NamedTuple):
    """Estimates for a run on the slice; nothing was compiled."""

    num_parameters: int
    state_bytes: int
    """Parameters and moments, whole on each chip."""
    activation_bytes: int
    """Kept for the backward pass by a chip."""
    chip_hours: float
    hours: float


def write_full(experiment: Experiment, output: pathlib.Path) -> None:
    """Writes `full.md` with the commands of an experiment, and prints it.

    Raises:
        UserError: the folder has another one already.
    """
    path = output / FILE_NAME
    print("counting FLOPs", flush=True)
    text = full_page(experiment)
    require(
        not path.exists() or path.read_text() == text,
        f"{path} holds other commands. Remove it, or name another --output.",
    )
    output.mkdir(parents=True, exist_ok=True)
    atomic_write(path, text)
    print(f"\n{text}\nwritten: {path}")


def full_page(experiment: Experiment) -> str:
    """Returns the commands of an experiment and what they need, as a Markdown page."""
    launched = [variant for variant in experiment.variants if variant.full is not None]
    on = find_slice(experiment.accelerator)
    lines = [
        "| variant | parameters | parameters and moments, GiB a chip "
        "| kept activations, GiB a chip | chip-hours | hours |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    total = 0.0
    for variant in launched:
        assert variant.full is not None
        needs = need(variant.full.load(), on)
        total += needs.chip_hours
        lines.append(
            f"| {variant.name} | {needs.num_parameters / 1e6:.0f} M | "
            f"{needs.state_bytes / 2**30:.2f} | {needs.activation_bytes / 2**30:.2f} | "
            f"{needs.chip_hours:,.0f} | {needs.hours:.1f} |"
        )
    parts = [
        f"# {experiment.title}, at the paper's size",
        _wrapped(f"{experiment.lead} ({experiment.source})"),
        _wrapped(
            f"Data: 12 million pairs of CC12M as shards {BUCKET}/cc12m/train-*, their tokenizer, "
            f"and labelled ImageNet as {BUCKET}/imagenet/train-* and val-*. The page docs/data.md "
            "says how to make them, docs/pods.md how to rent a slice."
        ),
        "## Needs, estimated",
        "\n".join(lines),
        _wrapped(
            f"Together {total:,.0f} chip-hours. Estimated for {on.num_chips} chips of {on.chip} "
            f"from the FLOPs of the matrix products at {100 * UTILISATION:.0f} % of the peak; "
            "nothing was compiled or measured. Parameters and moments are whole on each chip; "
            "working memory comes on top. What the compiler says:"
        ),
        _code(
            [
                command("pipelines.rehearse", each, [f"--topology={on.topology}"])
                for each in _distinct(launched)
            ]
        ),
        "## Train",
        *(
            f"{_wrapped(_heading(each))}\n\n{_code(_training(experiment, each))}"
            for each in launched
        ),
        *(
            _wrapped(f"{each.name}: not launched. {each.note}")
            for each in experiment.variants
            if each.full is None
        ),
        "## Measure",
        _code(_measuring(experiment, launched)),
    ]
    return "\n\n".join(parts) + "\n"


def need(config: PretrainConfig, on: TpuSlice) -> Need:
    """Returns what a run of a config needs on a slice, estimated from its FLOPs and sizes."""
    flops = pretraining(config).count_flops(config_batch_shapes(config)) * config.num_steps
    chip_hours = flops / (CHIPS[on.chip].flops * UTILISATION) / 3600
    kept = 0
    for source in mixture(config.data, config.batch_size):
        patches = (config.data.image_size // config.model.patch_size) ** 2
        tokens = num_tokens(
            patches if source.kind != "text" else 0, source.text_length, config.masking
        )
        stacks = (config.model.encoder, config.model.decoder)
        kept += source.rows * sum(
            count * stack.width * stack.num_layers * _KEPT_WIDTHS * 2
            for count, stack in zip(tokens, stacks, strict=True)
        )
    num_parameters = size(reference_model(config.model))
    return Need(
        num_parameters=num_parameters,
        state_bytes=num_parameters * _BYTES_OF_PARAMETER,
        activation_bytes=kept // on.num_chips,
        chip_hours=chip_hours,
        hours=chip_hours / on.num_chips,
    )


def command(module: str, setting: Setting, more: list[str]) -> str:
    """Returns the command line of a program that takes a config and its fields."""
    fields = [f"--{name}={as_typed(value)}" for name, value in setting.overrides.items()]
    return " ".join([f"python -m {module} --config={setting.config}", *more, *fields])


def workdir(experiment: Experiment, variant: Variant) -> str:
    """Returns the address of a run."""
    return f"{BUCKET}/paper/{experiment.name}/{_file_name(variant)}"


def _training(experiment: Experiment, variant: Variant) -> list[str]:
    assert variant.full is not None
    config = variant.full.load()
    places = [
        f"--{name}={BUCKET}/cc12m/train-*"
        for name, value in leaves(config).items()
        if name.startswith("data.sources.") and name.endswith(".shards")
    ]
    if config.model.vocab_size:
        places.append(f"--data.tokenizer={BUCKET}/cc12m/tokenizer.model")
    name = f"{experiment.name.replace('_', '-')}-{_file_name(variant)}"
    launch = (
        f"python -m pipelines.launch_tpu --name={name} --zone={ZONE} "
        f"--accelerator={experiment.accelerator} --spot --"
    )
    folder = f"--workdir={workdir(experiment, variant)}"
    train = command("pipelines.pretrain", variant.full, [folder, *places])
    return [f"{launch} {train}"]


def _measuring(experiment: Experiment, launched: list[Variant]) -> list[str]:
    runs = [workdir(experiment, variant) for variant in launched]
    labelled = f"--train_shards={BUCKET}/imagenet/train-* --test_shards={BUCKET}/imagenet/val-*"
    if experiment.measure == "probe":
        labelled = f"--train={BUCKET}/imagenet/train-* --test={BUCKET}/imagenet/val-*"
        return [
            f"python -m pipelines.probe --model={run} {labelled} --method=lars_m3ae" for run in runs
        ]
    if experiment.measure == "ood":
        labelled = (
            f"--train_shards={BUCKET}/cifar100/train-* --test_shards={BUCKET}/cifar100/test-* "
            f"--foreign_shards={BUCKET}/cifar10/test-*"
        )
    return [
        f"python -m pipelines.paper --experiment={experiment.name} --model={','.join(runs)} "
        f"{labelled} --output=runs/{experiment.name}"
    ]


def _distinct(launched: list[Variant]) -> list[Setting]:
    """Returns the settings whose steps differ: the length of a run does not count."""
    settings = {}
    for variant in launched:
        assert variant.full is not None
        fields = {
            name: value
            for name, value in variant.full.overrides.items()
            if name not in ("num_steps", "optimizer.warmup_fraction")
        }
        setting = Setting(config=variant.full.config, overrides=fields)
        settings.setdefault((setting.config, repr(fields)), setting)
    return list(settings.values())


def _heading(variant: Variant) -> str:
    paper = "; ".join(
        f"{value:.1f} ({version})"
        for by_version in variant.paper.values()
        for version, value in by_version.items()
    )
    return f"**{variant.name}.** In the paper: {paper}." if paper else f"**{variant.name}.**"


def _file_name(variant: Variant) -> str:
    plain = "".join(each if each.isalnum() else " " for each in variant.name.lower())
    return "-".join(plain.split())


def _wrapped(text: str) -> str:
    return textwrap.fill(text, 100, break_long_words=False, break_on_hyphens=False)


def _code(lines: list[str]) -> str:
    return "\n".join(["```", *lines, "```"])
