"""Guards the layering: every room imports only from the rooms below it."""

import ast

import pytest
from repository import ROOT, tracked_files

# The rooms of m3ae_tpu/, lowest layer first. Rooms of one layer do not import each other.
LAYERS = [
    "kernels errors scopes allocator",
    "files charts",
    "page",
    "storage",
    "config",
    "batch",
    "parallel",
    "model data",
    "run",
    "train",
    "pretrained",
    "probing",
    "evaluation finetuning",
    "report",
]
# Rooms beside the layers, and what they may import.
BESIDE = {
    "values": "",
    "command_line": "errors files values",
    "option_flags": "errors files values",
    "overrides": "errors files values storage config command_line",
    "configs": "config",
    "launch": "errors parallel",
    "prepare": "errors files storage config batch data",
    "measure": "kernels errors scopes files charts storage config batch parallel model data train",
    "weights": (
        "errors files storage config batch parallel model data run train pretrained evaluation"
    ),
    "features": "errors files config batch parallel model data pretrained prepare",
    "search": (
        "errors files charts page config batch parallel model data pretrained prepare features"
    ),
    "experiments": (
        "kernels errors files charts page values overrides config batch parallel model data run "
        "train pretrained probing evaluation report measure"
    ),
    "rehearsal": "kernels errors files charts page config batch parallel model train measure",
}
# Second copies of modules that already have a name below m3ae_tpu.
SECOND_NAMES = {"configs", "kernels", "pipelines"}


def allowed():
    """Maps every room to the set of rooms that it may import."""
    rooms, below = {}, set()
    for layer in LAYERS:
        rooms |= dict.fromkeys(layer.split(), frozenset(below))
        below |= set(layer.split())
    return rooms | {room: frozenset(names.split()) for room, names in BESIDE.items()}


ALLOWED = allowed()


def files(folder):
    """Lists the tracked Python files below a folder; without git, all of them."""
    paths = tracked_files(f"{folder}/*.py")
    if paths is None:
        return sorted((ROOT / folder).rglob("*.py"))
    return [ROOT / path for path in paths]


def files_of(room):
    folder = ROOT / room if room in SECOND_NAMES else ROOT / "m3ae_tpu" / room
    return files(folder.relative_to(ROOT)) if folder.is_dir() else [folder.with_suffix(".py")]


def imported_names(path):
    """Every absolute name that a file imports, `from a import b` as a.b."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def rooms_imported(path):
    """Returns the rooms of m3ae_tpu that a file imports from."""
    names = [name.split(".") for name in imported_names(path)]
    return {name[1] for name in names if name[0] == "m3ae_tpu" and len(name) > 1}


def test_every_room_has_a_layer():
    names = {path.relative_to(ROOT).parts[1] for path in files("m3ae_tpu")}
    rooms = {name.removesuffix(".py") for name in names} - {"__init__"}
    assert rooms | {"kernels", "configs"} == set(ALLOWED)


@pytest.mark.parametrize("room", ALLOWED)
def test_a_room_imports_only_from_rooms_below_it(room):
    wrong = [
        f"{path.relative_to(ROOT)} imports {name}"
        for path in files_of(room)
        for name in sorted(rooms_imported(path) - ALLOWED[room] - {room})
    ]
    assert wrong == []


def test_programs_do_not_import_each_other():
    wrong = [path.name for path in files("pipelines") if "pipelines" in rooms_imported(path)]
    assert wrong == []


@pytest.mark.parametrize("folder", ["kernels", "m3ae_tpu", "configs", "pipelines", "tests"])
def test_every_module_has_one_name(folder):
    wrong = [
        f"{path.relative_to(ROOT)} imports {name}"
        for path in files(folder)
        for name in imported_names(path)
        if name.split(".")[0] in SECOND_NAMES
    ]
    assert wrong == []


def test_only_kernels_import_each_other_by_relative_names():
    # They know nothing of the package that they are a part of, and do not reach out of their own.
    wrong = []
    for folder in ("kernels", "m3ae_tpu", "configs", "pipelines", "tests"):
        for path in files(folder):
            depth = len(path.relative_to(ROOT / folder).parts) if folder == "kernels" else 0
            levels = [
                node.level
                for node in ast.walk(ast.parse(path.read_text()))
                if isinstance(node, ast.ImportFrom)
            ]
            wrong += [str(path.relative_to(ROOT))] if any(n > depth for n in levels) else []
    assert wrong == []


def test_what_runs_before_the_flags_are_read_does_not_import_arrays():
    wrong = [
        f"{path.relative_to(ROOT)} imports {name}"
        for room in ("errors", "files", "config", "command_line", "overrides", "configs")
        for path in [*files_of(room), ROOT / "m3ae_tpu" / "__init__.py"]
        for name in imported_names(path)
        if name.split(".")[0] in {"jax", "numpy", "equinox", "optax", "grain", "orbax"}
    ]
    assert wrong == []


def test_programs_import_arrays_only_inside_functions():
    wrong = []
    for path in files("pipelines"):
        for node in ast.parse(path.read_text()).body:
            if isinstance(node, ast.Import | ast.ImportFrom):
                text = ast.unparse(node)
                if any(
                    f" {name}" in text for name in ("jax", "equinox", "grain", "orbax", "optax")
                ):
                    wrong.append(f"{path.name}: {text}")
    assert wrong == []


@pytest.mark.parametrize("name", ["kernels", "configs"])
def test_second_name_of_a_package_is_refused(name):
    with pytest.raises(ImportError, match=f"write: from m3ae_tpu.{name} import"):
        exec((ROOT / name / "__init__.py").read_text(), {"__name__": name})
