"""Errors that a user can correct. Imports nothing."""


class UserError(ValueError):
    """A setting, file or folder that cannot work: names it, its value and the fix."""


class DataError(UserError):
    """Data of a run that cannot be read or made; names the shard, record or worker process."""


def require(holds: bool, message: str) -> None:
    """Raises `UserError(message)` unless `holds`."""
    if not holds:
        raise UserError(message)
