"""The stage of a program that prints a result at its end."""

import contextlib
from collections.abc import Callable, Iterator

import rich


@contextlib.contextmanager
def report_stages() -> Iterator[Callable[[str], None]]:
    """Yields a function that shows a stage's name: in place on a terminal, elsewhere as a line."""
    console = rich.get_console()
    with console.status("starting") as status:

        def report(stage: str) -> None:
            status.update(stage)
            if not console.is_terminal:
                print(stage, flush=True)

        yield report
