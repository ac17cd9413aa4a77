"""Guards that the parts of a run's wall time add up to it, whatever kills the run in between."""

import json
import pathlib
import random
import signal
import subprocess
import sys
import time

import fake_gcs
import killed_run
import pytest

from m3ae_tpu.errors import UserError
from m3ae_tpu.run import claim
from m3ae_tpu.run.goodput import PARTS, Goodput, describe, figures, read_goodput, wall_time

ROOT = pathlib.Path(__file__).parent.parent.parent


def line(step, seconds, **parts):
    return {"step": step, "startup": 0.0, "data_wait": 0.0, "checkpoint": 0.0, "probe": 0.0} | {
        "seconds": seconds,
        **parts,
    }


def write(folder, lines):
    text = "".join(f"{json.dumps(line)}\n" for line in lines)
    (folder / "goodput.jsonl").write_text(text)


FIRST = [
    {"start": 1000.0, **line(0, 4.0, startup=4.0)},
    line(1, 10.0, startup=10.0),
    line(10, 20.0, startup=10.0, data_wait=1.0, checkpoint=2.0),
    line(17, 27.0, startup=10.0, data_wait=3.0, checkpoint=2.0),
]
SECOND = [
    {"start": 1060.0, **line(10, 2.0, startup=2.0)},
    line(11, 5.0, startup=5.0),
    line(20, 14.0, startup=5.0, probe=3.0, checkpoint=1.0),
]


def test_work_after_the_step_that_the_next_start_resumes_from_is_lost():
    parts = wall_time(FIRST + SECOND)
    assert parts == {
        "steps": 7 + 5,
        "startup": 10 + 5,
        "data_wait": 1,
        "checkpoint": 2 + 1,
        "probe": 3,
        "lost": 7,  # Steps 11 to 17, and the data that they waited for.
        "down": 1060 - 1027,
    }
    assert sum(parts.values()) == 1060 + 14 - 1000


def test_a_start_from_an_older_checkpoint_loses_the_work_of_several_starts():
    third = [{"start": 1100.0, **line(0, 3.0, startup=3.0)}]
    parts = wall_time(FIRST + SECOND + third)
    assert parts["steps"] == 0
    assert parts["startup"] == 10 + 5 + 3
    assert parts["lost"] == 17 + 9
    assert sum(parts.values()) == 103


def test_parts_add_up_for_any_history():
    draw = random.Random(0)
    for _ in range(200):
        lines, clock = [], 0.0
        for _ in range(draw.randint(1, 8)):
            step, now = draw.randint(0, 50), dict.fromkeys(line(0, 0), 0.0)
            start = clock
            for number in range(draw.randint(1, 6)):
                spent = {part: draw.random() for part in now if part not in ("step", "seconds")}
                now |= {part: now[part] + value for part, value in spent.items()}
                now["seconds"] += sum(spent.values()) + draw.random()
                step += draw.randint(0, 9) * (number > 0)
                lines.append({**now, "step": step} | ({} if number else {"start": start}))
            clock = start + now["seconds"] + draw.random() * 100
        wall = lines[-1]["seconds"] + start - lines[0]["start"]
        parts = wall_time(lines)
        assert sum(parts.values()) == pytest.approx(wall)
        assert min(parts.values()) >= -1e-9


def test_a_clock_that_is_behind_takes_nothing_from_another_part():
    late = [{"start": 1020.0, **line(17, 1.0, startup=1.0)}]
    assert wall_time(FIRST + late)["down"] == 0
    assert wall_time(FIRST + late)["steps"] == 12


def test_a_line_that_a_kill_cut_is_dropped_and_another_damaged_one_is_named(tmp_path):
    write(tmp_path, FIRST)
    with (tmp_path / "goodput.jsonl").open("a") as file:
        file.write('{"step": 18, "sta')
    assert read_goodput(tmp_path) == FIRST
    Goodput(tmp_path, resume_step=10, start_time=time.time()).close()
    assert read_goodput(tmp_path)[:4] == FIRST
    assert figures(tmp_path)["starts"] == 2

    (tmp_path / "goodput.jsonl").write_text("{}\n")
    with pytest.raises(UserError, match=r"goodput\.jsonl, line 1 = '\{\}' does not hold times"):
        read_goodput(tmp_path)


def test_measured_times_go_to_their_part(tmp_path):
    goodput = Goodput(tmp_path, resume_step=0, start_time=time.time() - 5)
    with goodput.spent("data_wait"):
        time.sleep(0.05)  # Waiting for the first batch is part of the start.
    goodput.dispatched(1)
    with goodput.spent("checkpoint"):
        time.sleep(0.05)
    goodput.dispatched(2)
    metrics = goodput.line()
    assert metrics["time/goodput/startup_seconds"] >= 5.05
    assert metrics["time/goodput/data_wait_seconds"] == 0
    assert metrics["time/goodput/checkpoint_seconds"] >= 0.05
    parts = [metrics[f"time/goodput/{part}_seconds"] for part in PARTS]
    assert sum(parts) == metrics["time/wall_seconds"]
    assert metrics["time/goodput"] < 0.1
    goodput.close()
    assert figures(tmp_path)["wall_seconds"] == pytest.approx(sum(parts), abs=1.0)
    assert "start and compile" in describe(goodput.parts())


def test_the_start_of_a_process_is_known():
    code = "from m3ae_tpu.run.goodput import process_start; print(process_start())"
    before = time.time()
    shown = subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True, capture_output=True)
    # The system counts hundredths of seconds.
    assert before - 0.02 <= float(shown.stdout) <= time.time()
    if sys.platform == "linux":
        assert float(shown.stdout) < before + 10


def test_a_process_that_is_not_the_leader_writes_no_file(tmp_path):
    Goodput(None, resume_step=0, start_time=time.time()).close()
    with pytest.raises(UserError, match=r"goodput\.jsonl does not exist"):
        figures(tmp_path)


def test_a_run_in_a_bucket_goes_on_with_its_times(capfd):
    fake_gcs.shared_server().restart("bucket")
    began = time.time() - 7
    for resume_step, start_time in ((0, began), (2, time.time())):
        workdir = claim.claim_workdir("gs://bucket/runs/a")
        goodput = Goodput(workdir.path, resume_step=resume_step, start_time=start_time)
        goodput.dispatched(resume_step + 1)
        goodput.dispatched(resume_step + 2)
        goodput.close()
        workdir.release()
    command = [sys.executable, "-m", "pipelines.goodput", "gs://bucket/runs/a", "--json"]
    subprocess.run(command, cwd=ROOT, check=True)
    found = json.loads(capfd.readouterr().out)
    assert found["starts"] == 2
    assert found["startup_seconds"] >= 7
    assert sum(found[f"{part}_seconds"] for part in PARTS) == pytest.approx(found["wall_seconds"])
    assert 7 <= found["wall_seconds"] <= time.time() - began


@pytest.mark.long
def test_the_report_of_a_run_that_is_killed_again_and_again_adds_up(tmp_path):
    flags = ["--num_steps=60", "--checkpoint.every_steps=10"]
    began, down = time.time(), 0.0
    for kill_step in (14, 27, 45, None):
        run = killed_run.start(tmp_path, *flags, seconds=0.2)
        while kill_step is not None:
            time.sleep(0.02)
            assert run.poll() is None
            lines = read_goodput(tmp_path)
            if lines and lines[-1]["step"] >= kill_step:
                run.send_signal(signal.SIGKILL)
                run.wait()
                time.sleep(1.0)
                down += 1.0
                break
        else:
            assert run.wait() == 0
    wall = time.time() - began
    found = figures(tmp_path)
    parts = {part: found[f"{part}_seconds"] for part in PARTS}
    assert found["starts"] == 4
    assert sum(parts.values()) == pytest.approx(found["wall_seconds"])
    # Not seen is the end of the last process: threads and files are closed.
    assert wall - 15 < found["wall_seconds"] < wall
    # A kill leaves at most the step under way.
    assert down < parts["down"] < down + 10
    # 0.2 s of each of the 60 steps are kept; 4, 7 and 5 steps are lost.
    assert parts["steps"] > 12
    assert parts["lost"] > 3
