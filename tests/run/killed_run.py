"""Kills a slow run at random times and starts it again, to see where its time goes.

    python tests/run/killed_run.py WORKDIR --kills=12 --num_steps=1250 --save_steps=60

The run sleeps for a second at each step, as a larger model would compute.
"""

import argparse
import os
import pathlib
import random
import subprocess
import sys
import time

ROOT = pathlib.Path(__file__).parent.parent.parent
SLOW = """
import runpy, time
from m3ae_tpu.train.monitor import StepMonitor

dispatched = StepMonitor.dispatched

def slowly(self, *values):
    dispatched(self, *values)
    time.sleep({seconds})

StepMonitor.dispatched = slowly
runpy.run_module("pipelines.pretrain", run_name="__main__", alter_sys=True)
"""


def start(workdir, *flags, seconds=1.0):
    """Starts a run that takes so many seconds at each step."""
    command = [sys.executable, "-c", SLOW.format(seconds=seconds), "--config=debug"]
    return subprocess.Popen(
        [*command, f"--workdir={workdir}", *flags],
        cwd=ROOT,
        env={**os.environ, "JAX_PLATFORMS": "cpu"},
        stdout=subprocess.DEVNULL,
    )


def main():
    """Kills a run so often, lets it end, and prints what its time went into."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("workdir")
    parser.add_argument("--kills", type=int, default=12)
    parser.add_argument("--num_steps", type=int, default=1250)
    parser.add_argument("--save_steps", type=int, default=60)
    parser.add_argument("--seconds_to_kill", type=float, default=135.0, help="On average.")
    options = parser.parse_args()
    flags = [f"--num_steps={options.num_steps}", f"--checkpoint.every_steps={options.save_steps}"]
    draw, began = random.Random(0), time.time()
    for number in range(options.kills + 1):
        run = start(options.workdir, *flags)
        try:
            run.wait(
                options.seconds_to_kill * draw.uniform(0.5, 1.5) if number < options.kills else None
            )
            break
        except subprocess.TimeoutExpired:
            run.kill()
            run.wait()
            print(f"killed after {time.time() - began:.0f} s", flush=True)
            time.sleep(3.0)  # The scheduler starts it again.
    print(f"wall time as seen from outside: {time.time() - began:.1f} s", flush=True)
    command = [sys.executable, "-m", "pipelines.goodput", options.workdir]
    subprocess.run(command, cwd=ROOT, check=True)
    subprocess.run([*command, "--json"], cwd=ROOT, check=True)


if __name__ == "__main__":
    main()
