"""What is raised for the user to mend. Imports nothing."""


class UserError(ValueError):
    """A setting, file or folder that cannot work: names it, its value and the fix."""


class DataError(UserError):
    """Data of a run that cannot be read or made: names the shard, the record or the worker process."""


def require(holds: bool, message: str) -> None:
    """Raises `UserError(message)` unless `holds`."""
    if not holds:
        raise UserError(message)
