"""Guards that a process which is killed, fails, hangs or is asked to stop ends the others too."""

import random
import signal
import time

import pytest
import several

from m3ae_tpu.parallel.exit_codes import HUNG, PEER_DIED, PREEMPTED

pytestmark = pytest.mark.long


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory):
    """A run of two processes that nothing interrupts."""
    workdir = tmp_path_factory.mktemp("unbroken") / "run"
    several.run(workdir, count=2)
    return several.metrics(workdir)


def goes_on(workdir, unbroken):
    """Returns whether the same command ends with the same metrics."""
    several.run(workdir, count=2)
    return several.metrics(workdir) == unbroken


def noting_time(path, action):
    return f"open({str(path)!r}, 'w').write(str(time.time())); {action}"


@pytest.mark.parametrize("killed", [0, 1])
def test_a_killed_process_ends_the_other_which_names_it(killed, unbroken, tmp_path):
    workdir, note = tmp_path / "run", tmp_path / "time"
    started = several.Started(
        workdir, count=2, action=noting_time(note, several.KILL), process=killed
    )
    codes, outputs = started.finish()
    assert time.time() - float(note.read_text()) < 60
    assert codes[killed] == -signal.SIGKILL
    assert codes[1 - killed] == PEER_DIED, outputs
    log = several.log(workdir, 1 - killed)
    names = "process 0, which coordinates the run, is gone" if killed == 0 else "from process 1"
    assert names in log.rpartition("the run ends: ")[2]
    assert goes_on(workdir, unbroken)


@pytest.mark.parametrize("failing", [0, 1])
def test_an_error_ends_all_processes_with_the_cause_in_every_log(failing, tmp_path):
    workdir, note = tmp_path / "run", tmp_path / "time"
    action = noting_time(note, several.RAISE)
    codes, _ = several.Started(workdir, count=2, action=action, process=failing).finish()
    assert time.time() - float(note.read_text()) < 20
    assert codes == [1, 1]
    for process in (0, 1):
        cause = f"the run ends: process {failing}: ValueError: a fault of the test"
        assert cause in several.log(workdir, process)


def test_the_watchdog_ends_a_run_that_hangs_and_shows_where(unbroken, tmp_path):
    codes, _ = several.Started(tmp_path, "--hang_seconds=5", count=2, action=several.HANG).finish()
    assert codes == [HUNG, HUNG]
    logs = [several.log(tmp_path, process) for process in (0, 1)]
    assert all("no step has ended for" in log for log in logs)
    assert "process 1: after step 5" in logs[0]
    assert "stacks of all threads" in logs[1]
    assert "dispatched_and_more" in logs[1]
    assert goes_on(tmp_path, unbroken)


def test_sigterm_to_one_process_saves_the_same_step_in_both(unbroken, tmp_path):
    codes, outputs = several.Started(tmp_path, count=2, action=several.TERMINATE).finish()
    assert codes == [PREEMPTED, PREEMPTED], outputs
    step = several.saved(tmp_path)[-1]
    assert 6 <= step < 12
    for process in (0, 1):
        assert f"saved step {step}" in several.log(tmp_path, process)
    assert goes_on(tmp_path, unbroken)


def test_ten_kills_in_a_row_lose_nothing_but_steps_since_the_last_save(unbroken, tmp_path):
    draw = random.Random(0)
    flags = ["--checkpoint.every_steps=1"]
    for _ in range(10):
        last = max(several.saved(tmp_path), default=0)
        several.Started(
            tmp_path,
            *flags,
            count=2,
            action=several.KILL,
            step=min(11, last + draw.randint(1, 3)),
            process=draw.randint(0, 1),
        ).finish()
    several.run(tmp_path, *flags, count=2)
    assert several.metrics(tmp_path) == unbroken
