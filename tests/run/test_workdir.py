"""Guards that a workdir holds one run: another one is refused, by the fields that differ."""

import dataclasses
import pathlib
import signal
import subprocess
import sys

import pytest

from m3ae_tpu.config import DataConfig, PretrainConfig, RunConfig, SourceConfig
from m3ae_tpu.errors import UserError
from m3ae_tpu.run.workdir import (
    describe_run,
    load_run_config,
    prepare_workdir,
    require_tokenizer_fits,
)

ROOT = pathlib.Path(__file__).parents[2]
SOURCES = (SourceConfig(weight=3.0), SourceConfig(kind="text", shards="texts-*"))
CONFIG = PretrainConfig(data=DataConfig(sources=SOURCES))


def start_run(path, config: RunConfig = CONFIG, tokenizer=b"", **options):
    """Prepares a workdir and records the run in it, as the loop does after all checks."""
    workdir = prepare_workdir(path, config, tokenizer=tokenizer, **options)
    workdir.record(config, tokenizer=tokenizer)
    return workdir


def make_run(path, config=CONFIG, tokenizer=b"pieces"):
    """Makes a workdir with results in it."""
    start_run(path, config, tokenizer).unlock()
    (path / "metrics.jsonl").write_text('{"step": 1}\n')


def test_new_folder_gets_config_and_tokenizer(tmp_path):
    workdir = start_run(tmp_path / "a" / "b", tokenizer=b"pieces")
    assert workdir.is_new
    assert load_run_config(workdir.path, PretrainConfig) == CONFIG
    assert (workdir.path / "tokenizer.model").read_bytes() == b"pieces"


def test_same_command_resumes(tmp_path):
    make_run(tmp_path)
    workdir = prepare_workdir(tmp_path, CONFIG, tokenizer=b"pieces")
    assert (workdir.is_new, workdir.changes) == (False, [])


def test_changes_that_a_run_allows_are_returned_and_recorded(tmp_path):
    make_run(tmp_path)
    data = dataclasses.replace(CONFIG.data, num_workers=0, tokenizer="moved/tokenizer.model")
    longer = dataclasses.replace(CONFIG, num_steps=200_000, data=data)
    changes = start_run(tmp_path, longer, b"pieces").changes
    assert changes == [
        "num_steps = 200000 now, was 100000",
        "data.tokenizer = moved/tokenizer.model now, was starter/tokenizer.model",
        "data.num_workers = 0 now, was 2",
    ]
    assert load_run_config(tmp_path, PretrainConfig) == longer


def test_another_run_is_refused_by_at_most_three_fields_and_left_as_it_is(tmp_path):
    make_run(tmp_path)
    model = dataclasses.replace(CONFIG.model, patch_size=8, vocab_size=9)
    other = dataclasses.replace(CONFIG, seed=1, batch_size=8, model=model)
    with pytest.raises(UserError, match="holds another run: ") as caught:
        prepare_workdir(tmp_path, other, tokenizer=b"pieces")
    message = str(caught.value)
    assert "seed = 1 now, was 0; batch_size = 8 now, was 4096; " in message
    assert " (and 1 more). Give another --workdir" in message
    assert load_run_config(tmp_path, PretrainConfig) == CONFIG


def test_other_number_of_sources_is_another_run(tmp_path):
    make_run(tmp_path)
    other = dataclasses.replace(CONFIG, data=DataConfig(sources=SOURCES[:1]))
    with pytest.raises(UserError, match=r"data.sources.1.kind = nothing now, was text"):
        prepare_workdir(tmp_path, other, tokenizer=b"pieces")


def moved(**source) -> PretrainConfig:
    sources = tuple(dataclasses.replace(old, **source) for old in SOURCES)
    return dataclasses.replace(CONFIG, data=DataConfig(sources=sources))


def test_shards_may_move_and_other_data_are_allowed_by_a_flag(tmp_path):
    make_run(tmp_path)
    workdir = prepare_workdir(tmp_path, moved(shards="elsewhere/train-*"), tokenizer=b"pieces")
    assert (
        workdir.changes[0] == "data.sources.0.shards = elsewhere/train-* now, was starter/train-*"
    )
    # The folder stays unchanged until the data were compared with the checkpoint.
    assert load_run_config(tmp_path, PretrainConfig) == CONFIG
    workdir.unlock()
    with pytest.raises(UserError, match=r"data\.sources\.0\.text_length = 9 now, was 64"):
        prepare_workdir(tmp_path, moved(text_length=9), tokenizer=b"pieces")
    prepare_workdir(
        tmp_path, moved(text_length=9), tokenizer=b"pieces", allow_changed_data=True
    ).unlock()


def test_failed_start_may_be_repeated_with_other_values(tmp_path):
    start_run(tmp_path, tokenizer=b"pieces")
    assert start_run(tmp_path, dataclasses.replace(CONFIG, batch_size=8)).is_new
    assert load_run_config(tmp_path, PretrainConfig).batch_size == 8
    assert not (tmp_path / "tokenizer.model").exists()


def test_checkpoint_alone_makes_it_a_run(tmp_path):
    start_run(tmp_path)
    (tmp_path / "checkpoints" / "4").mkdir(parents=True)
    with pytest.raises(UserError, match="seed = 1 now, was 0"):
        prepare_workdir(tmp_path, dataclasses.replace(CONFIG, seed=1))


def test_tokenizer_with_other_content_does_not_fit(tmp_path):
    make_run(tmp_path)
    with pytest.raises(
        UserError,
        match=r"data.tokenizer = starter/.* does not fit the checkpoint.*Use --data.token",
    ):
        prepare_workdir(tmp_path, CONFIG, tokenizer=b"other pieces")
    run = describe_run(CONFIG, tokenizer=b"pieces")
    require_tokenizer_fits(run, "a.model", b"pieces")
    with pytest.raises(UserError, match=r"data.tokenizer = a.model .* does not fit the checkpoint"):
        require_tokenizer_fits(run, "a.model", b"other pieces")


@pytest.mark.parametrize("content", ['{"model_type": "vit"}', "half a li", "[]", '{"seed": "0"}'])
def test_config_of_another_program_or_a_damaged_one_is_not_overwritten(tmp_path, content):
    (tmp_path / "config.json").write_text(content)
    with pytest.raises(UserError, match=r"config\.json"):
        prepare_workdir(tmp_path, CONFIG)
    assert (tmp_path / "config.json").read_text() == content


def test_workdir_that_cannot_be_made_is_refused(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="cannot be written"):
        prepare_workdir(tmp_path / "file", CONFIG)


@dataclasses.dataclass(frozen=True, kw_only=True)
class ToyConfig(RunConfig):
    """A run of another kind than pre-training."""

    num_classes: int = 10


def test_run_of_another_kind_has_a_workdir_too(tmp_path):
    config = ToyConfig(num_classes=3)
    start_run(tmp_path, config).unlock()
    (tmp_path / "metrics.jsonl").write_text('{"step": 1}\n')
    assert load_run_config(tmp_path, ToyConfig) == config
    with pytest.raises(UserError, match="num_classes = 4 now, was 3"):
        prepare_workdir(tmp_path, ToyConfig(num_classes=4))
    with pytest.raises(
        UserError, match=r"config\.json: num_classes is not a field of PretrainConfig"
    ):
        prepare_workdir(tmp_path, PretrainConfig())


def test_second_process_is_refused_until_the_first_is_gone_even_if_killed(tmp_path):
    script = (
        "import pathlib, sys, m3ae_tpu.config as c\n"
        "from m3ae_tpu.run.workdir import prepare_workdir\n"
        "held = prepare_workdir(pathlib.Path(sys.argv[1]), c.PretrainConfig())\n"
        "print('held', flush=True); sys.stdin.read()"
    )
    command = [sys.executable, "-c", script, tmp_path]
    with subprocess.Popen(
        command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as first:
        assert first.stdout is not None
        assert first.stdout.readline() == b"held\n"
        with pytest.raises(UserError, match="in use by another process"):
            prepare_workdir(tmp_path, PretrainConfig())
        first.send_signal(signal.SIGKILL)
    prepare_workdir(tmp_path, PretrainConfig()).unlock()
