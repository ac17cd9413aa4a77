"""Guards the layering: imports point one way, kernels <- m3ae_tpu <- configs <- pipelines."""

import ast

import pytest
from repository import ROOT, tracked_files

# What the files of a folder must not import. The first match of a file counts, so inner folders
# come first.
FORBIDDEN = {
    "kernels": ["m3ae_tpu"],
    "m3ae_tpu/model": [
        "m3ae_tpu.data",
        "m3ae_tpu.train",
        "m3ae_tpu.evaluation",
        "m3ae_tpu.command_line",
    ],
    "m3ae_tpu/data": [
        "m3ae_tpu.model",
        "m3ae_tpu.train",
        "m3ae_tpu.evaluation",
        "m3ae_tpu.command_line",
    ],
    "m3ae_tpu/train": ["m3ae_tpu.evaluation", "m3ae_tpu.command_line"],
    "m3ae_tpu/evaluation": ["m3ae_tpu.command_line"],
    "m3ae_tpu": [],
    "configs": [f"m3ae_tpu.{name}" for name in ("kernels", "model", "data", "train", "evaluation")],
    "pipelines": ["m3ae_tpu.pipelines"],
    "tests": [],
}
UPWARDS = ["m3ae_tpu.configs", "m3ae_tpu.pipelines"]
# Second copies of modules that already have a name below m3ae_tpu.
SECOND_NAMES = ["configs", "kernels", "pipelines"]


def files():
    folders = [folder for folder in FORBIDDEN if "/" not in folder]
    paths = tracked_files(*(f"{folder}/*.py" for folder in folders))
    if paths is None:  # Not a git checkout.
        return sorted(path for folder in folders for path in (ROOT / folder).rglob("*.py"))
    return [ROOT / path for path in paths]


def imported_names(path):
    """Every absolute name that a file imports, `from a import b` as a.b."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def test_only_kernels_import_each_other_by_relative_names():
    # They know nothing of the package that they are a part of.
    wrong = [
        str(path.relative_to(ROOT))
        for path in files()
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.ImportFrom) and node.level > (folder_of(path) == "kernels")
    ]
    assert wrong == []


def is_below(name, prefix):
    return name == prefix or name.startswith(f"{prefix}.")


def folder_of(path):
    return next(folder for folder in FORBIDDEN if path.is_relative_to(ROOT / folder))


@pytest.mark.parametrize("folder", FORBIDDEN)
def test_imports_point_one_way(folder):
    is_below_configs = folder == "kernels" or folder.startswith("m3ae_tpu")
    forbidden = [*FORBIDDEN[folder], *SECOND_NAMES, *(UPWARDS if is_below_configs else [])]
    wrong = [
        f"{path.relative_to(ROOT)} imports {name}"
        for path in files()
        if folder_of(path) == folder
        for name in imported_names(path)
        if any(is_below(name, prefix) for prefix in forbidden)
    ]
    assert wrong == []


@pytest.mark.parametrize(
    "name", ["m3ae_tpu/__init__.py", "m3ae_tpu/config/__init__.py", "m3ae_tpu/command_line.py"]
)
def test_what_runs_before_the_flags_are_read_does_not_import_arrays(name):
    slow = ["jax", "numpy", "equinox", "optax", "grain", "orbax", "m3ae_tpu.model", "m3ae_tpu.data"]
    names = list(imported_names(ROOT / name))
    assert [name for name in names if any(is_below(name, prefix) for prefix in slow)] == []


def test_programs_import_arrays_only_inside_functions():
    wrong = []
    for path in [path for path in files() if folder_of(path) == "pipelines"]:
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
