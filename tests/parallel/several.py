"""Starts the program as several processes on this machine, and lets one of them fail."""

import json
import os
import pathlib
import signal
import socket
import subprocess
import sys
import time

from m3ae_tpu.files import place
from m3ae_tpu.run.claim import files_of

ROOT = pathlib.Path(__file__).parent.parent.parent
FLAGS = ["--config=debug", "--num_steps=12", "--checkpoint.every_steps=4", "--probe.every_steps=0"]

# Runs the program; in it a process does something after a step.
PROGRAM = """
import os, runpy, signal, sys, time
import jax
from m3ae_tpu.train.monitor import StepMonitor

dispatched = StepMonitor.dispatched

def dispatched_and_more(self, step, metrics):
    dispatched(self, step, metrics)
    if step == {step} and jax.process_index() == {process}:
        {action}

StepMonitor.dispatched = dispatched_and_more
runpy.run_module("pipelines.pretrain", run_name="__main__", alter_sys=True)
"""
KILL = "os.kill(os.getpid(), signal.SIGKILL)"
TERMINATE = "os.kill(os.getpid(), signal.SIGTERM)"
HANG = "time.sleep(1e4)"
RAISE = "raise ValueError('a fault of the test')"


class Started:
    """Processes of one run, with four devices in all."""

    def __init__(self, workdir, *flags, count, action=None, step=6, process=1):
        """Starts them; `process` executes `action` after `step`."""
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        program = ["-m", "pipelines.pretrain"]
        if action is not None:
            program = ["-c", PROGRAM.format(step=step, process=process, action=action)]
        environment = {
            **os.environ,
            "JAX_PLATFORMS": "cpu",
            "XLA_FLAGS": f"--xla_force_host_platform_device_count={4 // count}",
        }
        self.start_time = time.monotonic()
        self.processes = []
        for index in range(count):
            members = [
                f"--coordinator_address=127.0.0.1:{port}",
                f"--num_processes={count}",
                f"--process_id={index}",
            ]
            command = [sys.executable, *program, f"--workdir={workdir}", *FLAGS, *flags, *members]
            self.processes.append(
                subprocess.Popen(
                    command,
                    cwd=ROOT,
                    env=environment,
                    stdout=subprocess.PIPE,
                    stderr=subprocess.STDOUT,
                    text=True,
                )
            )

    def finish(self, seconds=240):
        """Returns each process's exit code and output; kills all after some seconds."""
        outputs = []
        try:
            for process in self.processes:
                left = self.start_time + seconds - time.monotonic()
                outputs.append(process.communicate(timeout=max(1, left))[0])
        finally:
            for process in self.processes:
                if process.poll() is None:
                    process.send_signal(signal.SIGKILL)
        return [process.returncode for process in self.processes], outputs


def run(workdir, *flags, **options):
    """Runs all processes to their end, which must be a good one."""
    codes, outputs = Started(workdir, *flags, **options).finish()
    assert codes == [0] * len(codes), outputs
    return outputs


def log(workdir, process=0):
    """Returns a process's log."""
    name = "log.txt" if process == 0 else f"log-{process:03d}.txt"
    return (pathlib.Path(workdir) / name).read_text()


def metrics(workdir):
    """Returns all lines of metrics, without those that measure time."""
    with files_of(place("workdir", str(workdir))) as folder:
        lines = (folder / "metrics.jsonl").read_text().splitlines()
    return [
        {name: value for name, value in json.loads(line).items() if not name.startswith("time/")}
        for line in lines
    ]


def saved(workdir):
    """Returns the saved steps."""
    folders = pathlib.Path(workdir).glob("checkpoints/*")
    return sorted(int(path.name) for path in folders if path.name.isdigit())
