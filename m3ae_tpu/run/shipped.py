"""The model of the package: its name, its folder, and who may write there."""

import difflib
import os
import pathlib

from m3ae_tpu.errors import require
from m3ae_tpu.files import Place

STARTER = "starter"
"""Name of the model, wherever a program takes the folder of one."""
STARTER_MODEL = pathlib.Path(__file__).parents[1] / "pretrained" / "starter"


def located(address: Place) -> Place:
    """Returns the folder of the package's model for its name, else the address.

    Raises:
        UserError: a folder of that name holds a run or a model too, or the package has no model.
    """
    if os.fspath(address) != STARTER:
        return address
    own = pathlib.Path(STARTER)
    require(
        not (own / "config.json").exists(),
        f"{STARTER} is the model of the package, and a folder here with a model. "
        f"For the folder write {own.absolute()}; for the other, start elsewhere.",
    )
    require(
        STARTER_MODEL.is_dir(),
        f"{STARTER} is the model of the package, and {STARTER_MODEL} is not there. "
        "Install the package again.",
    )
    return STARTER_MODEL


def require_other_name(address: Place) -> None:
    """Refuses a new workdir that other programs would take for the package's model.

    Raises:
        UserError: it has the name of that model.
    """
    require(
        os.fspath(address) != STARTER,
        f"--workdir = {STARTER} is the name of the model of the package. "
        f"Give another, such as runs/{STARTER}.",
    )


def require_model_there(name: str, folder: pathlib.Path) -> None:
    """Checks that a folder in which a model is looked for exists.

    Args:
        name: The flag or argument and an equals sign, for the message; may be empty.
        folder: As the user named it.

    Raises:
        UserError: it does not.
    """
    near = difflib.get_close_matches(str(folder), [STARTER], n=1)
    require(
        folder.is_dir(),
        f"{name}{folder} is not a folder. {f'Did you mean {STARTER}? ' if near else ''}Name the "
        "workdir of a run, such as runs/quickstart, a folder that import_weights or export_weights "
        f"wrote, or {STARTER}, the model that ships with the package.",
    )


def require_not_shipped(folder: pathlib.Path) -> None:
    """Refuses to write results into the package.

    Raises:
        UserError: the folder is that of the package's model.
    """
    require(
        folder.resolve() != STARTER_MODEL.resolve(),
        f"WORKDIR = {STARTER} is the model of the package, and no results are written "
        "there. Name a folder for them: --output=FOLDER.",
    )
