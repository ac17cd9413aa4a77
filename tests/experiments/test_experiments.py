"""Guards the table of experiments: its runs load at both scales, and its commands are complete."""

import re
import shlex

import pytest

from m3ae_tpu.batch import mixture
from m3ae_tpu.config import PretrainConfig
from m3ae_tpu.experiments.experiments import EXPERIMENTS, JUNE, LATER
from m3ae_tpu.experiments.full import full_page, need, workdir
from m3ae_tpu.experiments.measuring import FIGURES
from m3ae_tpu.overrides import load_named_config, override
from m3ae_tpu.parallel.slices import find_slice
from m3ae_tpu.pretrained.task import ReconstructionTask


@pytest.mark.parametrize("experiment", EXPERIMENTS.values(), ids=EXPERIMENTS)
def test_findings_and_values_of_the_paper_belong_to_the_experiment(experiment):
    names = [variant.name for variant in experiment.variants]
    figures = FIGURES[experiment.measure]
    assert len(set(names)) == len(names)
    for finding in experiment.findings:
        assert {finding.better, finding.worse} <= set(names)
        assert finding.figure in figures
    assert all(set(variant.paper) <= set(figures) for variant in experiment.variants)


def test_values_are_those_of_both_versions_of_the_paper():
    masks = {variant.name: variant.paper for variant in EXPERIMENTS["text_mask"].variants}
    assert masks["15 %"]["linear_probe"] == {JUNE: 53.3, LATER: 45.9}
    assert masks["90 %"]["linear_probe"] == {JUNE: 62.6, LATER: 63.9}


@pytest.mark.parametrize("experiment", EXPERIMENTS.values(), ids=EXPERIMENTS)
def test_rows_of_each_kind_divide_over_micro_batches_here_and_chips_there(experiment):
    chips = find_slice(experiment.accelerator).num_chips
    for variant in experiment.variants:
        config = variant.starter.load()
        counts = [source.rows for source in mixture(config.data, config.batch_size)]
        assert sum(counts) == 40
        assert all(count % config.optimizer.accumulation_steps == 0 for count in counts)
        if variant.full is not None:
            config = variant.full.load()
            counts = [source.rows for source in mixture(config.data, config.batch_size)]
            assert sum(counts) == 4_096
            assert all(count % chips == 0 for count in counts)


def test_shares_of_pairs_split_records_rows_and_loss_alike():
    variants = {variant.name: variant for variant in EXPERIMENTS["paired_share"].variants}
    config = variants["20 %"].starter.load()
    pairs, images = config.data.sources
    assert (pairs.split, images.split) == ((0, 0.2), (0.2, 1))
    assert (pairs.weight, images.weight) == (8, 32)
    assert (config.loss.image_weight, config.loss.text_weight) == (0.2, 0.1)
    assert config.loss.unpaired_image_weight == 0.8
    alone = ReconstructionTask.of_run(variants["0 %, images alone"].starter.load())
    assert (alone.has_images, alone.has_texts) == (True, False)


@pytest.mark.parametrize("experiment", EXPERIMENTS.values(), ids=EXPERIMENTS)
def test_every_printed_command_is_one_that_its_program_takes(experiment, monkeypatch):
    # FLOPs are counted by tracing, which takes seconds for each size.
    one = need(load_named_config("debug", PretrainConfig), find_slice("v5litepod-4"))
    monkeypatch.setattr("m3ae_tpu.experiments.full.need", lambda config, on: one)
    lines = [line for line in full_page(experiment).splitlines() if line.startswith("python -m")]
    trained = []
    for line in lines:
        words = shlex.split(line)
        assert not any("|" in word for word in words)
        if "pipelines.launch_tpu" in words:
            flags = dict(
                word[2:].split("=", 1) for word in words if word.startswith("--") and "=" in word
            )
            assert find_slice(flags["accelerator"]).accelerator_type == experiment.accelerator
            assert re.fullmatch(r"[a-z]([a-z0-9-]{0,61}[a-z0-9])?", flags["name"])
            words = words[words.index("--") + 1 :]
        program, fields = words[2], words[3:]
        assert program in (
            "pipelines.pretrain",
            "pipelines.rehearse",
            "pipelines.probe",
            "pipelines.paper",
        )
        if program in ("pipelines.pretrain", "pipelines.rehearse"):
            (name,) = [word.removeprefix("--config=") for word in fields if "--config=" in word]
            own = [
                word
                for word in fields
                if not word.startswith(("--config=", "--workdir=", "--topology="))
            ]
            config = override(load_named_config(name, PretrainConfig), own)
            if program == "pipelines.pretrain":
                trained.append(next(word for word in fields if word.startswith("--workdir=")))
                assert {source.shards for source in config.data.sources} == {
                    "gs://BUCKET/cc12m/train-*"
                }
    launched = [variant for variant in experiment.variants if variant.full is not None]
    assert trained == [f"--workdir={workdir(experiment, variant)}" for variant in launched]
    measured = lines[-1] if experiment.measure != "probe" else "".join(lines)
    assert all(workdir(experiment, variant) in measured for variant in launched)


def test_needs_are_near_those_that_the_compiler_gives():
    config = load_named_config("m3ae_base", PretrainConfig)
    needs = need(config, find_slice("v5litepod-256"))
    # docs/scaling.md: a state of 1.71 GiB, a peak of 2.72, steps of 41.4 ms.
    assert needs.state_bytes / 2**30 == pytest.approx(1.71, abs=0.02)
    assert 0.3 < needs.activation_bytes / 2**30 < 1.01
    assert needs.chip_hours == pytest.approx(146_000 * 0.0414 * 256 / 3600, rel=0.1)
