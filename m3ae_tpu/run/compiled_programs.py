"""JAX's cache of compiled programs, placed before JAX is used."""

import os
import pathlib

from m3ae_tpu.errors import UserError, require
from m3ae_tpu.files import home_expanded


def keep_compiled_programs() -> None:
    """Lets JAX keep all compiled programs, so that the next start of a run compiles nothing."""
    # JAX leaves out what compiles in less than a second: most programs of a small run.
    os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
    if "JAX_COMPILATION_CACHE_DIR" in os.environ:
        return
    try:
        caches = home_expanded(os.environ.get("XDG_CACHE_HOME") or "~/.cache")
        folder = pathlib.Path(caches) / "m3ae-tpu" / "jax"
        folder.mkdir(parents=True, exist_ok=True)
        require(os.access(folder, os.W_OK), f"{folder} may not be written")
    except (OSError, UserError) as error:
        print(f"compiled programs are not kept for the next start: {error}", flush=True)
    else:
        os.environ["JAX_COMPILATION_CACHE_DIR"] = str(folder)
