"""Guards launches on TPUs, with a program that plays `gcloud`: the calls, the life of a run, and
its end, whatever happens to slices, connections and the program.
"""

import itertools
import json
import os
import pathlib
import shlex
import shutil
import signal
import subprocess
import sys
import time

import pytest

ROOT = pathlib.Path(__file__).parent.parent.parent
FLAGS = ("--name=run", "--zone=us-west4-a", "--accelerator=v5litepod-16", "--poll_seconds=0.05")
# Makes a virtual environment with this Python, and notes what it is asked to install.
UV = """#!/bin/sh
echo "$@" >> "$HOME/uv.txt"
[ "$1" = venv ] || exit 0
mkdir -p .venv/bin
printf '#!/bin/sh\\nexec {python} "$@"\\n' > .venv/bin/python
chmod +x .venv/bin/python
"""


# A shell's background jobs, as which the tests may run, ignore Ctrl-C.
_PROGRAM = """
import runpy, signal
signal.signal(signal.SIGINT, signal.default_int_handler)
runpy.run_module("pipelines.launch_tpu", run_name="__main__", alter_sys=True)
"""


class Play:
    """A machine with a `gcloud` that plays, and all that happens to its slices."""

    def __init__(self, folder):
        self.folder, self.programs = folder, folder / "bin"
        self.programs.mkdir()
        gcloud = pathlib.Path(__file__).with_name("gcloud.py").read_text()
        gcloud = gcloud.replace("/usr/bin/env python3", sys.executable)
        for name, text in {"gcloud": gcloud, "uv": UV.format(python=sys.executable)}.items():
            (self.programs / name).write_text(text)
            (self.programs / name).chmod(0o755)
        for name in ("bash", "cat", "git", "gzip", "mkdir", "nohup", "rm", "seq"):
            (self.programs / name).symlink_to(shutil.which(name))
        for name in ("setsid", "sh", "sleep", "tail", "tar", "dirname", "chmod", "kill"):
            (self.programs / name).symlink_to(shutil.which(name))
        (folder / "calls.jsonl").touch()
        self.happens()

    def happens(self, **values):
        play = {"states": [["WAITING_FOR_RESOURCES", "PROVISIONING", "ACTIVE"]]}
        (self.folder / "play.json").write_text(json.dumps(play | values))

    def start(self, *command, flags=FLAGS):
        return subprocess.Popen(
            [sys.executable, "-c", _PROGRAM, *flags, "--", *command],
            cwd=ROOT,
            # No other program is found: nothing may call a real gcloud.
            env={**os.environ, "PLAY": str(self.folder), "PATH": str(self.programs)},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def launch(self, *command, flags=FLAGS):
        """Returns exit code and output of a launch of a program."""
        process = self.start(*command, flags=flags)
        output, _ = process.communicate(timeout=600)
        return process.returncode, output

    def calls(self, verb=""):
        lines = (self.folder / "calls.jsonl").read_text().splitlines()
        return [call for call in map(json.loads, lines) if verb in ("", call[3])]

    def exists(self):
        return bool(json.loads((self.folder / "play.json").read_text()).get("state"))


@pytest.fixture
def play(tmp_path):
    play = Play(tmp_path)
    yield play
    for pid in tmp_path.glob("hosts/*/m3ae-*/.launch/pid"):
        subprocess.run(["kill", "-9", "--", f"-{pid.read_text().strip()}"], check=False)


def python(text):
    return ("python", "-c", text)


def test_a_program_runs_on_all_hosts_to_its_end_and_the_slice_is_given_back(play, tmp_path):
    play.happens(num_hosts=2)
    text = f"import os; print('on', os.getcwd()); open('{tmp_path}/' + os.environ['WORKER'], 'w')"
    code, output = play.launch(*python(text), flags=(*FLAGS, "--spot", "--project=mine"))
    assert code == 0, output
    for line in ("WAITING_FOR_RESOURCES", "PROVISIONING", "ACTIVE", "exit code 0: it ended well"):
        assert line in output
    assert output.count("on ") - output.count("on all") >= 1
    assert f"on {tmp_path}/hosts/run-0/m3ae-run" in output
    assert "hosts/run-1/m3ae-run" not in output
    assert {"0", "1"} <= {path.name for path in tmp_path.iterdir()}
    assert not play.exists()

    (create,) = play.calls("create")
    assert create == [
        *("compute", "tpus", "queued-resources", "create", "run", "--node-id=run"),
        *("--accelerator-type=v5litepod-16", "--runtime-version=v2-alpha-tpuv5-lite", "--spot"),
        *("--zone=us-west4-a", "--project=mine", "--quiet"),
    ]
    assert all("--project=mine" in call for call in play.calls())
    verbs = [call[3] for call in play.calls()]
    shown = [verb for verb, after in itertools.pairwise(verbs) if verb != after]
    assert shown == ["describe", "create", "describe", "scp", "ssh", "describe"]
    assert verbs[-1] == "delete"


def test_a_dry_run_calls_nothing_and_shows_the_calls_of_a_launch(play):
    command = python("print('a b')")
    code, output = play.launch(*command, flags=(*FLAGS, "--dry_run", "--setup_command=true"))
    assert code == 0
    assert play.calls() == []
    shown = {line for line in output.splitlines() if line.startswith("gcloud")}

    code, _ = play.launch(*command, flags=(*FLAGS, "--setup_command=true"))
    assert code == 0
    made = {shlex.join(["gcloud", *call]) for call in play.calls() if call[3] != "scp"}
    assert made <= shown
    assert {line.split()[4] for line in shown - made} == {"scp", "ssh"}  # A copy, and a stop.


def test_slices_that_are_taken_back_are_asked_for_again_without_counting_as_failures(play):
    play.happens(preempted_at=["step 3", "step 5"], states=[["ACTIVE"]] * 3)
    state = play.folder / "step"
    text = f"""
import pathlib, time
path = pathlib.Path('{state}')
for step in range(int(path.read_text()) if path.exists() else 0, 8):
    print('step', step, flush=True)
    new = path.with_name("new")
    new.write_text(str(step))
    new.replace(path)
    time.sleep(0.2)
"""
    code, output = play.launch(*python(text), flags=(*FLAGS, "--max_failures=0"))
    assert code == 0, output
    assert len(play.calls("create")) == 3
    assert len(play.calls("delete")) == 3
    assert len(play.calls("scp")) == 3
    assert output.count("taken back") == 2
    assert "step 7" in output


def test_a_program_that_ends_well_because_its_slice_is_taken_back_is_started_again(play):
    play.happens(states=[["ACTIVE"]] * 2)
    text = f"""
import json, pathlib
path = pathlib.Path('{play.folder}/play.json')
play = json.loads(path.read_text())
print('left', len(play['states']))
if len(play['states']) == 2:
    play['states'][0] = ['SUSPENDED']
    path.write_text(json.dumps(play))
"""
    code, output = play.launch(*python(text), flags=(*FLAGS, "--max_failures=0"))
    assert code == 0, output
    assert {"left 2", "left 1"} <= set(output.splitlines())
    assert len(play.calls("create")) == 2


@pytest.mark.parametrize(
    ("codes", "max_failures", "result", "says"),
    [
        ([75, 75, 0], 0, 0, "it was asked to stop, and has saved"),
        ([134, 0], 1, 0, "another of its processes died; try 2 of 2"),
        ([1, 1], 1, 2, "--max_failures = 1 is exceeded: the program ended with exit code 1"),
        ([2], 5, 2, "ended with exit code 2: its last lines say why"),
    ],
)
def test_the_exit_code_decides_if_a_program_is_started_again(
    play, codes, max_failures, result, says
):
    play.happens(states=[["ACTIVE"]])
    (play.folder / "codes.json").write_text(json.dumps(codes))
    text = f"""
import json, pathlib, sys
path = pathlib.Path('{play.folder}/codes.json')
code, *rest = json.loads(path.read_text())
path.write_text(json.dumps(rest))
sys.exit(code)
"""
    flags = (*FLAGS, f"--max_failures={max_failures}")
    code, output = play.launch(*python(text), flags=flags)
    assert code == result, output
    assert says in output
    assert "Traceback" not in output
    assert json.loads((play.folder / "codes.json").read_text()) == []
    assert len(play.calls("scp")) == 1  # What is installed stays.
    assert not play.exists()


def test_slices_that_cannot_be_made_are_tried_a_number_of_times(play):
    play.happens(states=[["WAITING_FOR_RESOURCES", "FAILED"]])
    code, output = play.launch(*python(""), flags=(*FLAGS, "--max_failures=2"))
    assert code == 2
    assert "--max_failures = 2 is exceeded: the slices could not be made: the zone has no" in output
    assert len(play.calls("create")) == 3
    assert not play.exists()


@pytest.mark.parametrize(
    ("verb", "message", "says"),
    [
        ("describe", "You do not currently have an active account selected.", "gcloud auth login"),
        ("describe", "The required property [project] is not currently set.", "--project=ID"),
        ("create", "Quota limit 'TPUV5s' has been exceeded.", "quotas), or take the zone"),
        ("create", "PERMISSION_DENIED: no", "the roles TPU Admin"),
        ("create", "PERMISSION_DENIED: SERVICE_DISABLED", "gcloud services enable"),
        ("create", "INVALID_ARGUMENT: type", "accelerator-types list"),
        ("ssh", 'SSH Key is not present. Please run "ssh-add k" to add it', "ssh-agent"),
    ],
)
def test_what_waiting_does_not_mend_ends_in_one_message(play, verb, message, says):
    play.happens(errors={verb: [message]}, states=[["ACTIVE"]])
    code, output = play.launch(*python(""))
    assert code == 2
    assert message in output
    assert says in output
    assert "Traceback" not in output
    assert not play.exists()


def test_a_missing_gcloud_is_named(play):
    (play.programs / "gcloud").unlink()
    code, output = play.launch(*python(""))
    assert code == 2
    assert "gcloud is not installed, or not on PATH" in output
    assert "Traceback" not in output


def test_calls_that_fail_for_a_while_are_made_again(play):
    down = "Could not connect"
    errors = {"describe": [None, None, down], "ssh": [down, None, down], "delete": [down]}
    play.happens(errors=errors, states=[["ACTIVE"]])
    code, output = play.launch(*python("print('done')"), flags=(*FLAGS, "--max_failures=0"))
    assert code == 0, output
    assert output.splitlines().count("done") == 1
    assert not play.exists()


def test_after_a_broken_connection_the_log_goes_on_where_it_broke(play):
    play.happens(broken_at=["line 2", "line 6"], states=[["ACTIVE"]])
    text = "import time\nfor n in range(9): print('line', n, flush=True); time.sleep(0.1)"
    code, output = play.launch(*python(text), flags=(*FLAGS, "--max_failures=0"))
    assert code == 0, output
    assert [line for line in output.splitlines() if line.startswith("line")] == [
        f"line {n}" for n in range(9)
    ]
    assert len(play.calls("scp")) == 1


def wait_for(process, text):
    printed = ""
    for line in process.stdout:
        printed += line
        if line.startswith(text):
            return
    raise AssertionError(printed)


TICKS = """
import pathlib, signal, sys, time
def save(*_):
    pathlib.Path({saved!r}).touch()
    sys.exit(75)
signal.signal(signal.SIGTERM, save)
for n in range(1000):
    print("tick", n, flush=True)
    time.sleep(0.1)
    if pathlib.Path({end!r}).exists(): sys.exit()
"""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_ctrl_c_lets_the_program_save_and_gives_the_slices_back(play, number):
    saved = play.folder / "saved"
    process = play.start(*python(TICKS.format(saved=str(saved), end="/none")))
    wait_for(process, "tick 1")
    process.send_signal(number)
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "the program saves and stops" in output
    assert "stopped by Ctrl-C" in output
    assert saved.exists()
    assert not play.exists()


def test_kept_slices_are_taken_up_by_the_same_command(play):
    saved, end = play.folder / "saved", play.folder / "end"
    command, flags = python(TICKS.format(saved=str(saved), end=str(end))), (*FLAGS, "--keep")
    process = play.start(*command, flags=flags)
    wait_for(process, "tick 1")
    process.send_signal(signal.SIGINT)
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "is kept and costs go on" in output
    assert "queued-resources delete run" in output
    assert not saved.exists()

    process = play.start(*command)
    wait_for(process, "tick 1")  # Its log from the beginning: it was not started again.
    time.sleep(0.3)
    end.touch()
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 0, output
    assert "starting" not in output
    assert len(play.calls("scp")) == 1
    assert not play.exists()


def test_several_slices_get_the_program_each(play):
    play.happens(states=[["ACTIVE"]])
    flags = (*FLAGS, "--num_slices=2", "--create_flags=--reserved")
    code, output = play.launch(*python("print('here')"), flags=flags)
    assert code == 0, output
    (create,) = play.calls("create")
    assert {"--node-count=2", "--node-prefix=run", "--reserved"} <= set(create)
    starts = [call for call in play.calls("ssh") if " start " in call[-3]]
    assert sorted(call[4] for call in starts) == ["run-0", "run-1"]
    assert [line for line in output.splitlines() if line.startswith("here")] == ["here"]


def test_hosts_get_the_tracked_files_and_the_pinned_versions(play):
    play.happens(states=[["ACTIVE"]])
    text = "import pathlib; print(pathlib.Path('constraints.txt').exists())"
    flags = (*FLAGS, "--setup_command=echo ready > ready.txt", "--keep")
    code, output = play.launch(*python(text), flags=flags)
    assert code == 0, output
    home = play.folder / "hosts" / "run-0"
    assert "--constraint constraints.txt --editable .[tpu]" in (home / "uv.txt").read_text()
    assert (home / "m3ae-run" / "ready.txt").read_text() == "ready\n"
    checkout = home / "m3ae-run"
    assert (checkout / "m3ae_tpu" / "configs").is_symlink()
    assert not (checkout / ".git").exists()


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        (["--accelerator=v5e-256"], "Did you mean v5litepod-256?"),
        (["--accelerator=v4-7"], "v4 counts TensorCores. The nearest slice is v4-8"),
        (["--name=My_Run"], "--name = My_Run is not a name for gcloud"),
        (["--num_slices=0"], "--num_slices = 0 is less than 1"),
        (["--zoen=x"], "Did you mean --zone?"),
    ],
)
def test_mistakes_on_the_command_line_call_nothing(play, changes, says):
    code, output = play.launch("python", flags=(*FLAGS, *changes))
    assert code == 2
    assert says in output
    assert play.calls() == []


def test_a_launch_without_a_program_is_refused(play):
    code, output = play.launch()
    assert code == 2
    assert "Write the program after the flags" in output


@pytest.mark.long
def test_a_run_survives_that_its_slice_is_taken_back(play, tmp_path):
    play.happens(preempted_at=["step 25/"], states=[["ACTIVE"]] * 2)
    workdir = tmp_path / "workdir"
    program = ("python", "-m", "pipelines.pretrain", "--config=debug", f"--workdir={workdir}")
    code, output = play.launch(*program)
    assert code == 0, output
    # The step of the newest checkpoint depends on when the slice is taken.
    assert "going on after step " in output
    assert len(play.calls("create")) == 2
    assert f"saved step 40 in {workdir}/checkpoints" in output
