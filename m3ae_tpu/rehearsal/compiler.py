"""Presence of the TPU compiler."""

import importlib.util

from m3ae_tpu.errors import UserError


def require_compiler() -> None:
    """Raises `UserError` unless the TPU compiler is installed."""
    if importlib.util.find_spec("libtpu") is None:
        raise UserError(
            "The TPU compiler, libtpu, is not installed. "
            "Run `make compile-tpu`, or pip install 'm3ae-tpu[compile-tpu]'."
        )
