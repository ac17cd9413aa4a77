"""Guards the profile of steps: the steps that were asked for, and no other."""

import gzip
import json

import jax.numpy as jnp
import pytest

from m3ae_tpu.errors import UserError
from m3ae_tpu.run.profile import Profile


def run(workdir, steps, start_step):
    with Profile(workdir, steps, start_step=start_step) as profile:
        for step in range(start_step + 1, 9):
            state = jnp.zeros(8)
            profile.begin(step, state)
            profile.end(step, state)


def traced_steps(workdir):
    (path,) = workdir.glob("profile/plugins/profile/*/perfetto_trace.json.gz")
    events = json.loads(gzip.decompress(path.read_bytes()))["traceEvents"]
    marks = [event["args"] for event in events if event.get("name") == "train"]
    return sorted(int(mark["step_num"]) for mark in marks)


def test_a_trace_holds_the_steps_that_were_asked_for(tmp_path):
    run(tmp_path, (3, 5), start_step=0)
    assert traced_steps(tmp_path) == [3, 4, 5]


def test_a_run_that_resumes_in_between_traces_the_rest(tmp_path):
    run(tmp_path, (3, 5), start_step=3)
    assert traced_steps(tmp_path) == [4, 5]


def test_finished_steps_and_none_leave_no_trace(tmp_path):
    run(tmp_path, (3, 5), start_step=5)
    run(tmp_path, None, start_step=0)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("steps", [(5, 3), (0, 2)])
def test_steps_out_of_order_are_refused(tmp_path, steps):
    with pytest.raises(UserError, match=r"--profile_steps = \d,\d is not a first and a last step"):
        run(tmp_path, steps, start_step=0)
