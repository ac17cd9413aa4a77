"""Guards that a workdir holds one run: another one is refused, by the fields that differ."""

import dataclasses
import pathlib
import signal
import subprocess
import sys

import pytest
from places import InBucket, OnDisk, place_of

from m3ae_tpu.config import DataConfig, PretrainConfig, RunConfig, SourceConfig
from m3ae_tpu.errors import UserError
from m3ae_tpu.run.claim import files_of
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


def make_run(address, config: RunConfig = CONFIG, tokenizer=b"pieces"):
    """Makes a workdir with results in it."""
    workdir = start_run(address, config, tokenizer)
    (workdir.path / "metrics.jsonl").write_text('{"step": 1}\n')
    workdir.unlock()


def recorded(address, config_type: type[RunConfig] = PretrainConfig):
    """Returns the config that is recorded in a workdir."""
    with files_of(address) as folder:
        return load_run_config(folder, config_type)


@pytest.fixture(params=[OnDisk, InBucket])
def stored(request, tmp_path):
    """An empty workdir on a disk or in a bucket."""
    return request.param(tmp_path)


@pytest.fixture
def address(stored):
    return place_of(stored.address)


def test_new_folder_gets_config_and_tokenizer(stored):
    address = f"{stored.address}/a/b"
    workdir = start_run(place_of(address), tokenizer=b"pieces")
    assert (workdir.is_new, workdir.address) == (True, address)
    workdir.unlock()
    assert recorded(place_of(address)) == CONFIG
    assert stored.contents()["a/b/tokenizer.model"] == b"pieces"


def test_same_command_resumes(address):
    make_run(address)
    workdir = prepare_workdir(address, CONFIG, tokenizer=b"pieces")
    assert (workdir.is_new, workdir.changes) == (False, [])
    workdir.unlock()


def test_changes_that_a_run_allows_are_returned_and_recorded(address):
    make_run(address)
    data = dataclasses.replace(CONFIG.data, num_workers=0, tokenizer="moved/tokenizer.model")
    longer = dataclasses.replace(CONFIG, num_steps=200_000, data=data)
    workdir = start_run(address, longer, b"pieces")
    workdir.unlock()
    assert workdir.changes == [
        "num_steps = 200000 now, was 100000",
        "data.tokenizer = moved/tokenizer.model now, was starter/tokenizer.model",
        "data.num_workers = 0 now, was 2",
    ]
    assert recorded(address) == longer


def test_another_run_is_refused_by_at_most_three_fields_and_left_as_it_is(address):
    make_run(address)
    model = dataclasses.replace(CONFIG.model, patch_size=8, vocab_size=9)
    other = dataclasses.replace(CONFIG, seed=1, batch_size=8, model=model)
    with pytest.raises(UserError, match="holds another run: ") as caught:
        prepare_workdir(address, other, tokenizer=b"pieces")
    message = str(caught.value)
    assert "seed = 1 now, was 0; batch_size = 8 now, was 4096; " in message
    assert " (and 1 more). Give another --workdir" in message
    assert recorded(address) == CONFIG


def test_other_number_of_sources_is_another_run(address):
    make_run(address)
    other = dataclasses.replace(CONFIG, data=DataConfig(sources=SOURCES[:1]))
    with pytest.raises(UserError, match=r"data.sources.1.kind = nothing now, was text"):
        prepare_workdir(address, other, tokenizer=b"pieces")


def moved(**source) -> PretrainConfig:
    sources = tuple(dataclasses.replace(old, **source) for old in SOURCES)
    return dataclasses.replace(CONFIG, data=DataConfig(sources=sources))


def test_shards_may_move_and_other_data_are_allowed_by_a_flag(address):
    make_run(address)
    workdir = prepare_workdir(address, moved(shards="elsewhere/train-*"), tokenizer=b"pieces")
    assert (
        workdir.changes[0] == "data.sources.0.shards = elsewhere/train-* now, was starter/train-*"
    )
    workdir.unlock()
    # The folder stays unchanged until the data were compared with the checkpoint.
    assert recorded(address) == CONFIG
    with pytest.raises(UserError, match=r"data\.sources\.0\.text_length = 9 now, was 64"):
        prepare_workdir(address, moved(text_length=9), tokenizer=b"pieces")
    prepare_workdir(
        address, moved(text_length=9), tokenizer=b"pieces", allow_changed_data=True
    ).unlock()


def test_failed_start_may_be_repeated_with_other_values(stored, address):
    start_run(address, tokenizer=b"pieces").unlock()
    again = start_run(address, dataclasses.replace(CONFIG, batch_size=8))
    again.unlock()
    assert again.is_new
    assert recorded(address).batch_size == 8
    assert "tokenizer.model" not in stored.contents()


def test_checkpoint_alone_makes_it_a_run(stored, address):
    start_run(address).unlock()
    stored.write("checkpoints/4/commit_success.txt", b"")
    with pytest.raises(UserError, match="seed = 1 now, was 0"):
        prepare_workdir(address, dataclasses.replace(CONFIG, seed=1))


def test_tokenizer_with_other_content_does_not_fit(address):
    make_run(address)
    with pytest.raises(
        UserError,
        match=r"data.tokenizer = starter/.* does not fit the checkpoint.*Use --data.token",
    ):
        prepare_workdir(address, CONFIG, tokenizer=b"other pieces")
    run = describe_run(CONFIG, tokenizer=b"pieces")
    require_tokenizer_fits(run, "a.model", b"pieces")
    with pytest.raises(UserError, match=r"data.tokenizer = a.model .* does not fit the checkpoint"):
        require_tokenizer_fits(run, "a.model", b"other pieces")


@pytest.mark.parametrize("content", ['{"model_type": "vit"}', "half a li", "[]", '{"seed": "0"}'])
def test_config_of_another_program_or_a_damaged_one_is_not_overwritten(stored, address, content):
    stored.write("config.json", content.encode())
    with pytest.raises(UserError, match=r"config\.json"):
        prepare_workdir(address, CONFIG)
    assert stored.contents()["config.json"] == content.encode()


def test_workdir_that_cannot_be_made_is_refused(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="cannot be written"):
        prepare_workdir(tmp_path / "file", CONFIG)


@dataclasses.dataclass(frozen=True, kw_only=True)
class ToyConfig(RunConfig):
    """A run of another kind than pre-training."""

    num_classes: int = 10


def test_run_of_another_kind_has_a_workdir_too(address):
    config = ToyConfig(num_classes=3)
    make_run(address, config, tokenizer=b"")
    assert recorded(address, ToyConfig) == config
    with pytest.raises(UserError, match="num_classes = 4 now, was 3"):
        prepare_workdir(address, ToyConfig(num_classes=4))
    with pytest.raises(
        UserError, match=r"config\.json: num_classes is not a field of PretrainConfig"
    ):
        prepare_workdir(address, PretrainConfig())


def test_second_process_is_refused_until_the_first_is_gone_even_if_killed(address):
    script = (
        "import sys, m3ae_tpu.config as c\n"
        "from m3ae_tpu.files import place\n"
        "from m3ae_tpu.run.workdir import prepare_workdir\n"
        "held = prepare_workdir(place('workdir', sys.argv[1]), c.PretrainConfig())\n"
        "print('held', flush=True); sys.stdin.read()"
    )
    command = [sys.executable, "-c", script, str(address)]
    with subprocess.Popen(
        command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as first:
        assert first.stdout is not None
        assert first.stdout.readline() == b"held\n"
        with pytest.raises(UserError, match=r"in use by .*process"):
            prepare_workdir(address, PretrainConfig())
        first.send_signal(signal.SIGKILL)
    prepare_workdir(address, PretrainConfig()).unlock()
