"""Guards that a run resumes bit for bit, and that damaged checkpoints are found and named."""

import json
import os
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
from small_state import BY_ROW, RUN, Model, abstract, assert_same, make_state

from m3ae_tpu.config import CheckpointConfig
from m3ae_tpu.errors import UserError
from m3ae_tpu.run import digests
from m3ae_tpu.run.checkpoint import Checkpointer, CheckpointReader
from m3ae_tpu.run.inspection import inspect

ROOT = pathlib.Path(__file__).parents[2]


def save(workdir, *steps, keep=3):
    checkpointer = Checkpointer(workdir, CheckpointConfig(keep=keep))
    for step in steps:
        checkpointer.save(step, make_state(step), {"step": step, "fingerprint": "f"}, RUN)
    checkpointer.close()


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A workdir with steps 4, 6 and 8 of which each test gets its own copy."""
    workdir = tmp_path_factory.mktemp("saved")
    save(workdir, 2, 4, 6, 8)
    return workdir


@pytest.fixture
def workdir(saved, tmp_path):
    subprocess.run(["cp", "-r", saved / "checkpoints", tmp_path], check=True)
    return tmp_path


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


def flip(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def shorten(path):
    path.write_bytes(path.read_bytes()[:-1])


@pytest.mark.parametrize("damage", [flip, shorten, pathlib.Path.unlink])
@pytest.mark.parametrize(
    "name", ["model/ocdbt.process_0/d/*", "optimizer/_METADATA", "data/metadata", "digests.json"]
)
def test_damaged_step_is_named_and_skipped(workdir, caplog, damage, name):
    file = next((workdir / "checkpoints" / "8").glob(name))
    damage(file)
    state, data_state, _ = CheckpointReader(workdir).restore(abstract(make_state(0)))
    assert_same(state, make_state(6))
    assert data_state["step"] == 6
    assert "checkpoint 8 is damaged" in caplog.text
    # A flipped bit in the list of digests accuses one of the files that it lists.
    assert str(file) in caplog.text or (file.name, damage) == (digests.FILE_NAME, flip)


def test_nothing_starts_from_scratch_where_all_steps_are_damaged(workdir):
    for step in (4, 6, 8):
        shorten(workdir / "checkpoints" / str(step) / "data" / "metadata")
    with pytest.raises(UserError, match=r"no undamaged checkpoint: .*8/data/metadata has .* bytes"):
        Checkpointer(workdir, CheckpointConfig()).latest_step()


def test_run_that_fell_back_saves_over_the_damaged_steps(workdir):
    shorten(workdir / "checkpoints" / "8" / "data" / "metadata")
    checkpointer = Checkpointer(workdir, CheckpointConfig())
    assert checkpointer.latest_step() == 6
    checkpointer.save(7, make_state(7), {"step": 7}, RUN)
    checkpointer.save(8, make_state(8), {"step": 8}, RUN)
    checkpointer.close()
    assert checkpointer.steps() == [6, 7, 8]
    assert CheckpointReader(workdir).latest_step() == 8


def test_half_removed_old_step_does_no_harm(workdir):
    """A kill can come while an old step is being removed."""
    folder = workdir / "checkpoints" / "4"
    (folder / "_CHECKPOINT_METADATA").unlink()
    subprocess.run(["rm", "-r", folder / "model"], check=True)
    save(workdir, 10)
    assert CheckpointReader(workdir).steps() == [6, 8, 10]


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


def test_kill_before_a_save_is_complete_leaves_the_former_step(workdir):
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
    command = [sys.executable, "-c", textwrap.dedent(script), workdir]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == -signal.SIGKILL, done.stderr
    assert any(path.name.startswith("10.") for path in (workdir / "checkpoints").iterdir())

    assert CheckpointReader(workdir).latest_step() == 8
    save(workdir, 10)
    assert sorted(os.listdir(workdir / "checkpoints")) == ["10", "6", "8"]
    assert CheckpointReader(workdir).latest_step() == 10


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


def test_inspect_program_prints_json_and_marks_a_damaged_step(workdir):
    flip(workdir / "checkpoints" / "6" / "run" / "metadata")
    command = [sys.executable, "-m", "pipelines.inspect_checkpoint", str(workdir), "--json"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
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
