"""Guards the watchdog: it fires when no step ends, and never while something else takes long."""

import subprocess
import sys
import time

from m3ae_tpu.parallel.exit_codes import HUNG
from m3ae_tpu.run.watchdog import Watchdog

HANGS = """
import logging, time
from m3ae_tpu.run.watchdog import Watchdog

logging.basicConfig(level=logging.INFO)
with Watchdog(0.5) as watchdog:
    watchdog.finished(7)
    time.sleep(100)
"""


def test_a_hang_ends_the_process_with_the_stacks_of_its_threads():
    done = subprocess.run(
        [sys.executable, "-c", HANGS], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == HUNG, done.stderr
    assert "no step has ended for" in done.stderr
    assert "after step 7" in done.stderr
    assert 'File "<string>", line 8 in <module>' in done.stderr


def test_compiling_saving_and_probes_may_take_any_time():
    with Watchdog(0.2) as watchdog:
        time.sleep(0.6)
        watchdog.finished(1)
        with watchdog.paused("saving"):
            time.sleep(0.6)
        watchdog.finished(2)


def test_no_limit_watches_nothing():
    with Watchdog(0.0) as watchdog:
        watchdog.finished(1)
        time.sleep(0.3)
