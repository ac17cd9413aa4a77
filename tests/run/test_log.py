"""Guards a run's messages: a progress bar on a terminal, plain lines elsewhere and in the log."""

import io
import logging

import pytest
from rich.console import Console

from m3ae_tpu.run.log import Progress, show_card, start_log

METRICS = {
    "train/loss": 1.23456,
    "time/examples_per_second": 1234.5,
    "time/data_wait_fraction": 0.02,
}


@pytest.fixture(autouse=True)
def own_logger(monkeypatch):
    """Leaves the package's logger to other tests as it was."""
    logger = logging.getLogger("m3ae_tpu")
    state = (logger.level, logger.propagate, list(logger.handlers))
    yield
    for handler in logger.handlers:
        handler.close()
    logger.level, logger.propagate, logger.handlers[:] = state


def show_everything(workdir, *, is_terminal):
    screen = io.StringIO()
    console = Console(file=screen, force_terminal=is_terminal, width=100)
    start_log(workdir, console)
    show_card([("parameters", "1,234"), ("batch", "16")], "run", console)
    with Progress(10, 2, console) as progress:
        progress.advance(3)
        progress.report(4, METRICS)
        logging.getLogger("m3ae_tpu.train").warning("something happened")
        progress.report(6, METRICS)
    return screen.getvalue(), (workdir / "log.txt").read_text()


LINES = ["run", "  parameters  1,234", "  batch       16"]
LINES += ["step 4/10  loss 1.2346  1,234 examples/s  2% waiting for data", "something happened"]


@pytest.mark.parametrize("is_terminal", [True, False])
def test_log_has_plain_lines_with_times(tmp_path, is_terminal):
    _, log = show_everything(tmp_path, is_terminal=is_terminal)
    lines = [line[len("2026-11-26 00:00:00 ") :] for line in log.splitlines()]
    assert lines[:5] == LINES
    assert lines[5].startswith("step 6/10  loss 1.2346")
    assert lines[5].endswith(" left")
    assert "\x1b" not in log


def test_pipe_gets_the_same_lines(tmp_path):
    screen, _ = show_everything(tmp_path, is_terminal=False)
    assert screen.splitlines()[:5] == LINES
    assert "\x1b" not in screen
    assert "\r" not in screen


def test_terminal_gets_a_table_and_a_progress_bar(tmp_path):
    screen, _ = show_everything(tmp_path, is_terminal=True)
    assert "─" in screen
    assert "step 4/10  loss" not in screen
    assert "loss 1.2346" in screen
    assert "something happened" in screen


def test_log_goes_on_in_the_same_file_and_leaves_the_former_runs(tmp_path):
    (tmp_path / "other").mkdir()
    show_everything(tmp_path, is_terminal=False)
    _, log = show_everything(tmp_path, is_terminal=False)
    show_everything(tmp_path / "other", is_terminal=False)
    assert log.count("something happened") == 2
    assert (tmp_path / "log.txt").read_text() == log
