"""Guards that a run resumes bit for bit, and that damaged checkpoints are found and named."""

import itertools
import json
import pathlib
import signal
import subprocess
import sys
import textwrap

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from places import InBucket, OnDisk, flipped, step_files
from small_state import BY_ROW, RUN, Model, abstract, assert_same, make_state

from m3ae_tpu.config import CheckpointConfig
from m3ae_tpu.errors import UserError
from m3ae_tpu.run import digests
from m3ae_tpu.run.checkpoint import Checkpointer
from m3ae_tpu.run.checkpoint_reader import CheckpointReader
from m3ae_tpu.run.inspection import inspect

ROOT = pathlib.Path(__file__).parents[2]


def save(workdir, *steps, keep=3):
    checkpointer = Checkpointer(workdir, CheckpointConfig(keep=keep))
    for step in steps:
        checkpointer.save(step, make_state(step), {"step": step, "fingerprint": "f"}, RUN)
    checkpointer.close()


@pytest.fixture(scope="module", params=[OnDisk, InBucket])
def saved(request, tmp_path_factory):
    """A kind of workdir, and the files of one with steps 4, 6 and 8."""
    workdir = request.param(tmp_path_factory.mktemp("saved"))
    save(workdir.folder, 2, 4, 6, 8)
    return request.param, workdir.contents()


@pytest.fixture
def place(saved, tmp_path):
    """A workdir with steps 4, 6 and 8, on a disk or in a bucket."""
    kind, contents = saved
    place = kind(tmp_path)
    for name, content in contents.items():
        place.write(name, content)
    return place


@pytest.fixture
def workdir(place):
    """The folder of its small files, by which checkpoints are found."""
    return place.folder


def test_state_comes_back_bit_for_bit_with_the_requested_shardings(workdir):
    state, data_state, run = CheckpointReader(workdir).restore(
        abstract(make_state(0), sharding=BY_ROW)
    )
    assert_same(state, make_state(8))
    assert state.model.kernel.sharding == BY_ROW
    assert (data_state, run) == ({"step": 8, "fingerprint": "f"}, RUN)


def test_only_the_newest_steps_are_kept(workdir):
    assert CheckpointReader(workdir).steps() == [4, 6, 8]


def test_model_alone_comes_back_on_one_device(workdir):
    step, model, run = CheckpointReader(workdir).restore_model(
        jax.eval_shape(lambda: make_state(0).model)
    )
    assert (step, run) == (8, RUN)
    assert_same(model, make_state(8).model)
    assert len(model.kernel.devices()) == 1


def test_arrays_may_be_donated_as_soon_as_save_returns(tmp_path):
    overwrite = jax.jit(lambda tree: jax.tree.map(jnp.negative, tree), donate_argnums=0)
    state = make_state(5)
    checkpointer = Checkpointer(tmp_path, CheckpointConfig())
    checkpointer.save(5, state, {}, RUN)
    overwrite(state)
    assert state.model.kernel.is_deleted()
    checkpointer.close()
    assert_same(checkpointer.restore(abstract(make_state(0)))[0], make_state(5))


def shortened(content):
    return content[:-1]


def emptied(content):
    del content
    return b""


def removed(content):
    del content


def damage(place, name, kind):
    place.write(name, kind(place.contents()[name]))


@pytest.mark.parametrize("kind", [flipped, shortened, emptied, removed])
@pytest.mark.parametrize(
    "beginning",
    ["model/ocdbt.process_0/d/", "optimizer/_METADATA", "data/metadata", "digests.json"],
)
def test_damaged_step_is_named_and_skipped(place, caplog, kind, beginning):
    name = next(name for name in step_files(place, 8) if f"/8/{beginning}" in name)
    damage(place, name, kind)
    state, data_state, _ = CheckpointReader(place.folder).restore(abstract(make_state(0)))
    assert_same(state, make_state(6))
    assert data_state["step"] == 6
    assert "checkpoint 8 is damaged" in caplog.text
    # A flipped bit in the list of digests accuses one of the files that it lists.
    assert f"{place.address}/{name}" in caplog.text or (kind, beginning) == (
        flipped,
        "digests.json",
    )


def test_nothing_starts_from_scratch_where_all_steps_are_damaged(place):
    for step in (4, 6, 8):
        damage(place, f"checkpoints/{step}/data/metadata", shortened)
    with pytest.raises(UserError, match=r"no undamaged checkpoint: .*8/data/metadata has .* bytes"):
        Checkpointer(place.folder, CheckpointConfig()).latest_step()


def test_two_damaged_steps_are_named_and_the_one_before_them_is_used(place, caplog):
    damage(place, "checkpoints/8/run/metadata", flipped)
    damage(place, "checkpoints/6/digests.json", emptied)
    state, _, _ = CheckpointReader(place.folder).restore(abstract(make_state(0)))
    assert_same(state, make_state(4))
    assert "checkpoint 8 is damaged and skipped: " in caplog.text
    assert "checkpoint 6 is damaged and skipped: " in caplog.text


def test_files_of_equal_size_that_are_swapped_are_damage(place, caplog):
    files = list(step_files(place, 8).items())
    first, second = next(
        (one, other)
        for (one, content), (other, another) in itertools.combinations(files, 2)
        if len(content) == len(another) and content != another
    )
    contents = place.contents()
    place.write(first, contents[second])
    place.write(second, contents[first])
    assert CheckpointReader(place.folder).latest_step() == 6
    assert "checkpoint 8 is damaged and skipped: " in caplog.text


def test_a_file_of_an_older_step_is_not_taken_for_the_newest(place, caplog):
    older = {name.replace("/6/", "/8/"): content for name, content in step_files(place, 6).items()}
    for name, content in older.items():
        if name in place.contents() and "digests" not in name:
            place.write(name, content)
    assert CheckpointReader(place.folder).latest_step() == 6
    assert "checkpoint 8 is damaged and skipped: " in caplog.text


def test_more_files_than_were_written_do_no_harm(place):
    for name in ("checkpoints/8/model/d/0", "checkpoints/8/notes", "checkpoints/readme"):
        place.write(name, b"not of this run")
    state, _, _ = CheckpointReader(place.folder).restore(abstract(make_state(0)))
    assert_same(state, make_state(8))


def test_run_that_fell_back_saves_over_the_damaged_steps(place):
    damage(place, "checkpoints/8/data/metadata", shortened)
    workdir = place.folder
    checkpointer = Checkpointer(workdir, CheckpointConfig())
    assert checkpointer.latest_step() == 6
    checkpointer.save(7, make_state(7), {"step": 7}, RUN)
    checkpointer.save(8, make_state(8), {"step": 8}, RUN)
    checkpointer.close()
    assert checkpointer.steps() == [6, 7, 8]
    assert CheckpointReader(workdir).latest_step() == 8


def test_half_removed_old_step_does_no_harm(place):
    """A kill can come while an old step is being removed."""
    for name in step_files(place, 4):
        if "/4/_CHECKPOINT_METADATA" in name or "/4/model/" in name:
            place.write(name, None)
    save(place.folder, 10)
    assert CheckpointReader(place.folder).steps() == [6, 8, 10]


def test_folder_without_checkpoints_has_no_latest_step(tmp_path):
    assert CheckpointReader(tmp_path).latest_step() is None
    with pytest.raises(UserError, match="holds no checkpoint"):
        CheckpointReader(tmp_path).restore(abstract(make_state(0)))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda model: eqx.tree_at(lambda m: m.bias, model, jnp.zeros(8)),
            r"bias is bfloat16 \[8\] there and float32",
        ),
        (
            lambda model: eqx.tree_at(lambda m: m.kernel, model, jnp.zeros((16, 32))),
            r"\[16, 24\] there .*\[16, 32\]",
        ),
        (
            lambda model: Model(model.kernel, model.bias, jnp.zeros(3)),
            r"text_head is missing there and float32 \[3\]",
        ),
        (
            lambda model: eqx.tree_at(lambda m: m.bias, model, None),
            r"bias is bfloat16 \[8\] there and missing here",
        ),
    ],
    ids=["dtype", "shape", "more", "less"],
)
def test_other_arrays_than_the_stored_ones_are_refused_by_name(workdir, change, message):
    with pytest.raises(
        UserError, match=rf"checkpoints/8 does not fit .*model {message}|{message}.*config.json"
    ):
        CheckpointReader(workdir).restore_model(jax.eval_shape(lambda: change(make_state(0).model)))


def test_failed_write_in_the_background_is_raised_and_leaves_the_former_step(workdir, monkeypatch):
    def disk_is_full(*_):
        raise OSError("No space left on device")

    checkpointer = Checkpointer(workdir, CheckpointConfig())
    monkeypatch.setattr(digests, "list_of_digests", disk_is_full)
    checkpointer.save(9, make_state(9), {}, RUN)
    with pytest.raises(OSError, match="No space left"):
        checkpointer.wait()
    assert CheckpointReader(workdir).latest_step() == 8


def test_kill_before_a_save_is_complete_leaves_the_former_step(place):
    script = """
        import os, pathlib, signal, sys
        sys.path[:0] = ["tests", "tests/run"]
        import conftest, test_checkpoint

        class Killed(test_checkpoint.Checkpointer):
            def _write_digests(self):
                super()._write_digests()  # All is written; only the rename is missing.
                os.kill(os.getpid(), signal.SIGKILL)

        test_checkpoint.Checkpointer = Killed
        test_checkpoint.save(pathlib.Path(sys.argv[1]), 10)
    """
    command = [sys.executable, "-c", textwrap.dedent(script), place.folder]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == -signal.SIGKILL, done.stderr
    assert any(name.startswith("checkpoints/10") for name in place.contents())

    assert CheckpointReader(place.folder).latest_step() == 8
    save(place.folder, 10)
    saved = {name.split("/")[1] for name in place.contents() if name.startswith("checkpoints/")}
    assert saved == {"6", "8", "10"}
    assert CheckpointReader(place.folder).latest_step() == 10


def test_inspection_gives_the_same_digests_for_the_same_arrays_however_they_are_spread(
    workdir, tmp_path
):
    other = tmp_path / "other"
    checkpointer = Checkpointer(other, CheckpointConfig())
    checkpointer.save(8, make_state(8, sharding=BY_ROW), {"fingerprint": "f", "step": 8}, RUN)
    checkpointer.close()
    (there,) = inspect(other)
    here = inspect(workdir)
    assert here[-1] == there
    assert len({step["model_sha256"] for step in here}) == 3
    model = make_state(8).model
    assert there["model_sha256"] == digests.arrays_sha256(
        {"bias": np.asarray(model.bias), "kernel": np.asarray(model.kernel)}
    )
    assert (there["parameters"], there["parameter_bytes"]) == (16 * 24 + 8, 16 * 24 * 4 + 8 * 2)


def test_digest_of_arrays_covers_names_dtypes_shapes_and_bits():
    array = np.arange(6, dtype=np.float32)
    others = [
        {"b": array},
        {"a": array.astype(np.float64)},
        {"a": array.reshape(2, 3)},
        {"a": -array},
        {},
    ]
    assert len({digests.arrays_sha256(arrays) for arrays in [{"a": array}, *others]}) == 6


def test_inspect_program_prints_json_and_marks_a_damaged_step(place):
    damage(place, "checkpoints/6/run/metadata", flipped)
    command = [sys.executable, "-m", "pipelines.inspect_checkpoint", place.address, "--json"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr
    steps = json.loads(done.stdout)
    assert [step["step"] for step in steps] == [4, 6, 8]
    assert [step["config"] for step in steps] == [RUN["config"], None, RUN["config"]]
    assert "run/metadata" in steps[1]["damage"]


@pytest.mark.parametrize(
    ("name", "message"), [("nowhere", "is not a folder"), (".", "holds no checkpoint")]
)
def test_inspecting_a_folder_without_checkpoints_is_refused(tmp_path, name, message):
    with pytest.raises(UserError, match=message):
        inspect(tmp_path / name)
