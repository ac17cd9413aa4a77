"""Writes the list of folders and files in WORKSPACE.md; `make map` runs it.

A Python file is described by the first sentence of its docstring, a package by that of its
`__init__.py`, and everything else by `DESCRIPTIONS`.
"""

import ast
import fnmatch
import pathlib
import re
import sys
import textwrap

from repository import ROOT, tracked_files

WORKSPACE = ROOT / "WORKSPACE.md"
START = "<!-- The rest of this file is written by `make map`. -->\n"

DESCRIPTIONS = {
    ".": "Documents, settings and set-up.",
    ".ci": "What a server runs.",
    ".ci/run": "Everything that must pass: tests, style, types, the wheel.",
    ".gitignore": "What git leaves out.",
    ".python-version": "The Python that version managers should start: 3.12.",
    "BENCHMARKS.md": "How things are measured, the main figures, and where the rest is.",
    "CHANGELOG.md": "What changed for users.",
    "CONTRIBUTING.md": "How changes are made and checked.",
    "FIDELITY.md": "Where this differs from the paper's code, and why.",
    "LICENSE": "Apache-2.0.",
    "Makefile": "Set-up and the main jobs: `quickstart`, `test`, `lint`, `map`, `starter-model`.",
    "NOTICE": "Sources and licences of the starter set's images and texts.",
    "README.md": "What this is and how to start.",
    "WORKSPACE.md": "This map.",
    "constraints.txt": "The exact versions that `make install` takes.",
    "pyproject.toml": "The package: dependencies, commands, settings of pytest, ruff and pyright.",
    "docs": "Pages on one topic.",
    "docs/buckets.md": "Runs, shards and prepared sets in a bucket: commands, promises, costs.",
    "docs/data.md": "From a download, a folder or texts to sets of shards, and to a run on them.",
    "docs/fine-tuning.md": "Fine-tuning: commands, heads, recipes, rates by layer, figures.",
    "docs/paper.md": "The paper's experiments: commands, its figures, and ours on the starter set.",
    "docs/pods.md": "From an empty project to a finished run on a TPU pod; GKE, Slurm, GPUs.",
    "docs/reconstruction.png": "What the model of the package fills in, for the README.",
    "docs/results": "Results, with their commands, dates and hardware.",
    "docs/results/data.md": "The resizer, the loader by stage, preparing data.",
    "docs/results/gpu.md": "Train steps and attention on a GPU, beside PyTorch and others.",
    "docs/results/starter.md": "What the starter runs learn, and how their recipe was chosen.",
    "docs/results/tpu.md": "Attention and train steps as the TPU compiler schedules them.",
    "docs/results/weights.md": "Exports beside the model, in transformers, timm and onnxruntime.",
    "docs/using-the-encoder.md": "Features, robot policies, PyTorch, ONNX and search.",
    "docs/scaling.md": "Whole slices of TPUs as the compiler sees them, and needs of more chips.",
    "kernels/README.md": "How the attention kernel works, what limits it, how to use it elsewhere.",
    "kernels/*/block_sizes.json": "The table of block sizes, and the source of each row.",
    "m3ae_tpu/configs": "Link to `configs/`: `from m3ae_tpu.configs import ...`.",
    "m3ae_tpu/charts.css": "The style of charts, light and dark.",
    "m3ae_tpu/kernels": "Link to `kernels/`: `from m3ae_tpu.kernels import ...`.",
    "m3ae_tpu/pipelines": "Link to `pipelines/`: the installed commands start these programs.",
    "m3ae_tpu/launch/host.sh": "Installs, starts, follows or stops a program on one host.",
    "m3ae_tpu/py.typed": "Tells type checkers that the package is typed.",
    "m3ae_tpu/pretrained/starter": 'The model of the package: `m3ae_tpu.load("starter")`.',
    "m3ae_tpu/pretrained/starter/README.md": "Its card: use, scores, data, licences.",
    "m3ae_tpu/pretrained/starter/config.json": "Its settings.",
    "m3ae_tpu/pretrained/starter/evaluation.json": "Its scores.",
    "m3ae_tpu/pretrained/starter/manifest.json": "Its origin, digests, and known features.",
    "m3ae_tpu/pretrained/starter/model.safetensors": "Its weights, float16.",
    "m3ae_tpu/data/starter": "The starter set: images with captions, images, texts.",
    "m3ae_tpu/data/starter/ATTRIBUTION.md": "Creators and licences of all records.",
    "m3ae_tpu/data/starter/*.array_record": "The shards.",
    "m3ae_tpu/data/starter/manifest.json": "Counts and digests of the shards.",
    "m3ae_tpu/data/starter/tokenizer.model": "The SentencePiece tokenizer of its texts.",
    "m3ae_tpu/data/starter/source": "The starter set in the form that its shards are made from.",
    "m3ae_tpu/data/starter/source/ATTRIBUTION.md": "Creators and licences, per record.",
    "m3ae_tpu/data/starter/source/README.md": "The form of these files.",
    "m3ae_tpu/data/starter/source/*.gz": "Captions, texts and classes.",
    "m3ae_tpu/data/starter/source/starter_images.zip": "The images.",
    "m3ae_tpu/page.css": "The style of the pages, light and dark.",
    "m3ae_tpu/page.html": "The frame of the pages, with places to fill in.",
    "tests": "Behaviour, one file a topic, in the folders of the code.",
    "tests/kernels": "Tests of `kernels/`.",
    "tests/words.txt": "Words that are not to come back, and what to write instead.",
    "tests/*": "Tests of `m3ae_tpu/{name}/`.",
    "tests/golden/configs": "Every named config as text: a changed default shows in its diff.",
    "tests/golden/configs/*.txt": "One named config each.",
    "tests/golden/reference": "Inputs and outputs of the paper's code.",
    "tests/golden/reference/adamw_*.npz": "The optimizer, step by step.",
    "tests/golden/reference/functions_*.npz": "Small functions one by one.",
    "tests/golden/reference/heavypad_*.npz": "Pairs with much padding.",
    "tests/golden/reference/image_only_*.npz": "Images alone.",
    "tests/golden/reference/nopad_*.npz": "Pairs without padding.",
    "tests/golden/reference/paired_*.npz": "Pairs.",
    "tests/golden/reference/params.npz": "The parameters that the cases share.",
    "tests/golden/reference/repr_*.npz": "Features without masking.",
    "tests/golden/reference/text_only_*.npz": "Texts alone.",
    "tests/golden/twins/*": "One model and its outputs; see `make_twins.py`.",
    "tests/golden/twins/*/config.json": "Its sizes, as its library writes them.",
    "tests/golden/twins/*/*.pth": "Its weights, saved by PyTorch.",
    "tests/golden/twins/*/model.safetensors": "Its weights.",
    "tests/golden/twins/*/numbers.npz": "Inputs and outputs.",
}
"""A sentence for each folder or file that has no docstring. The first pattern that fits counts."""


def map_of(paths: list[pathlib.PurePosixPath]) -> str:
    """Returns the list of folders and files as Markdown.

    Raises:
        ValueError: something is described nowhere, or a description is of nothing.
    """
    folders = sorted({path.parent for path in paths}, key=lambda folder: _order(folder, paths))
    named = {path for path in paths if path.name != "__init__.py"}
    lines, used = [], set()
    for folder in folders:
        pattern, sentence = _describe(folder)
        used.add(pattern)
        lines += [f"### `{folder}/`", "", *textwrap.wrap(sentence, 100), ""]
        items = {}
        for path in sorted(path for path in named if path.parent == folder):
            pattern, sentence = _describe(path)
            used.add(pattern)
            items[pathlib.PurePosixPath(pattern).name] = sentence
        for name, sentence in items.items():
            lines += textwrap.wrap(
                f"- `{name}`: {sentence}", 100, subsequent_indent="  ", break_on_hyphens=False
            )
        lines += [""] if items else []
    if unused := sorted(set(DESCRIPTIONS) - used):
        raise ValueError(f"tests/workspace_map.py describes what does not exist: {unused}")
    return "\n".join(lines)


def _order(folder, paths):
    """Sorts folders that hold Python after the root and before the others, each by its name."""
    top = folder.parts[:1]
    is_code = any(path.parts[:1] == top and path.suffix == ".py" for path in paths)
    return bool(top), not is_code, folder


def _describe(path):
    """Returns the pattern that names a folder or file in the map, and its sentence."""
    python = path / "__init__.py" if (ROOT / path).is_dir() else path
    is_link = (ROOT / path).is_symlink()
    if python.suffix == ".py" and (ROOT / python).exists() and not is_link:
        doc = ast.get_docstring(ast.parse((ROOT / python).read_text()))
        if doc is None:
            raise ValueError(f"{python} has no docstring. Give it one; its first sentence is read.")
        paragraph = " ".join(doc.split("\n\n")[0].split())
        return str(path), re.split(r"(?<=\.)\s+(?=[A-Z`])", paragraph)[0]
    for pattern, sentence in DESCRIPTIONS.items():
        if fnmatch.fnmatch(str(path), pattern) and pattern.count("/") == str(path).count("/"):
            return pattern, sentence.format(name=path.name)
    raise ValueError(f"{path} is not described. Give it a line in tests/workspace_map.py.")


def with_map(text: str, paths: list[pathlib.PurePosixPath]) -> str:
    """Returns the text of WORKSPACE.md with the list written again."""
    by_hand, _, _ = text.partition(START)
    return f"{by_hand}{START}\n{map_of(paths)}"


def main() -> None:
    """Writes WORKSPACE.md."""
    paths = tracked_files()
    if paths is None:
        sys.exit("error: this folder is not a git checkout. The map lists what git tracks.")
    WORKSPACE.write_text(with_map(WORKSPACE.read_text(), paths))


if __name__ == "__main__":
    main()
