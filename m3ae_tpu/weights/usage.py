"""Lines of code that load an export, one example for each format, as model cards show them."""

import textwrap

from m3ae_tpu.data.wordpiece import is_wordpiece
from m3ae_tpu.pretrained.model_folder import VOCABULARY
from m3ae_tpu.pretrained.pretrained import Pretrained
from m3ae_tpu.run.workdir import TOKENIZER
from m3ae_tpu.weights.uses import Use, uses_of

HEADERS = {
    "hf": "---\nlibrary_name: transformers\npipeline_tag: image-feature-extraction\n---\n\n",
    "hf_mae": "---\nlibrary_name: transformers\n---\n\n",
    "timm": "---\nlibrary_name: timm\npipeline_tag: image-feature-extraction\n---\n\n",
}
"""YAML by which model hubs know how a folder is loaded."""

_PYTHON = """\
```python
{code}
```
"""
_SAFETENSORS = """\
import m3ae_tpu

model = m3ae_tpu.load("{folder}")
features = model.encode({arguments})
"""
_HF = """\
from PIL import Image
from transformers import AutoImageProcessor, AutoModel

processor = AutoImageProcessor.from_pretrained("{folder}")
model = AutoModel.from_pretrained("{folder}", add_pooling_layer=False)
inputs = processor(Image.open("cat.jpg").convert("RGB"), return_tensors="pt")
tokens = model(**inputs).last_hidden_state  # [1, 1 + patches, {width}]
features = tokens[:, 1:].mean(dim=1)
"""
_HF_MAE = """\
from PIL import Image
from transformers import AutoImageProcessor, ViTMAEForPreTraining

processor = AutoImageProcessor.from_pretrained("{folder}")
model = ViTMAEForPreTraining.from_pretrained("{folder}")
patches = model(**processor(Image.open("cat.jpg").convert("RGB"), return_tensors="pt")).logits
"""
_TIMM = """\
import timm
from PIL import Image

model = timm.create_model("local-dir:{folder}", pretrained=True).eval()
transform = timm.data.create_transform(**timm.data.resolve_model_data_config(model))
tokens = model.forward_features(transform(Image.open("cat.jpg").convert("RGB"))[None])
features = tokens[:, 1:].mean(dim=1)
"""
_ONNX = """\
import numpy as np
import onnxruntime

session = onnxruntime.InferenceSession("{folder}/{file}")
{inputs}
({output},) = session.run(["{output}"], {{{given}}})
"""
_STABLEHLO = """\
import jax.export
import numpy as np
from safetensors.numpy import load_file

with open("{folder}/{file}", "rb") as file:
    program = jax.export.deserialize(bytearray(file.read()))
{inputs}
features = program.call(load_file("{folder}/model.safetensors"), {order})
"""


def usage_of(format_name: str, pretrained: Pretrained, folder: str) -> str:
    """Returns Markdown on how an export is loaded and what it gives.

    Args:
        format_name: The format's name.
        pretrained: The exported model.
        folder: Name of the export's folder.
    """
    width = pretrained.config.model.encoder.width
    if format_name == "safetensors":
        arguments = []
        if pretrained.task.has_images:
            arguments.append('images=["cat.jpg"]')
        if pretrained.task.has_texts and (pretrained.task.has_pairs or not arguments):
            arguments.append('texts=["a cat on a sofa"]')
        code = _SAFETENSORS.format(folder=folder, arguments=", ".join(arguments))
        return _block(code) + _prose(
            "`features` has `cls`, `image_mean`, `text_mean` and `tokens`. Every program of "
            f"m3ae-tpu takes it as a run: `python -m pipelines.evaluate {folder} --output=DIR`."
        )
    if format_name == "hf":
        return _block(_HF.format(folder=folder, width=width)) + _prose(
            "The encoder for images alone; words have no place in this class. Without "
            "`add_pooling_layer=False` the library adds a pooler with random weights, and warns: "
            "do not use `pooler_output`."
        )
    if format_name == "hf_mae":
        return _block(_HF_MAE.format(folder=folder)) + _prose(
            "For reconstruction: this class hides patches at random in every call, also in "
            "evaluation. For features export with `--format=hf`."
        )
    if format_name == "timm":
        return _block(_TIMM.format(folder=folder)) + _prose(
            "The encoder for images alone. Tokens are those after the final norm."
        )
    use = uses_of(pretrained)[0]
    template, ending = (_ONNX, "onnx") if format_name == "onnx" else (_STABLEHLO, "stablehlo")
    names = _input_names(use)
    code = template.format(
        folder=folder,
        file=f"{use.name}.{ending}",
        inputs="\n".join(_example_inputs(pretrained, use)),
        output="image_mean" if use.has_image else "text_mean",
        given=", ".join(f'"{name}": {name}' for name in names),
        order=", ".join(names),
    )
    return _block(code) + _files(pretrained, ending)


def tokenizer_file(pretrained: Pretrained) -> str:
    """Returns the name of the tokenizer's file in an export."""
    tokenizer = pretrained.tokenizer
    has_vocabulary = tokenizer is not None and is_wordpiece(tokenizer.model)
    return VOCABULARY if has_vocabulary else TOKENIZER


def _block(code: str) -> str:
    return _PYTHON.format(code=code.rstrip("\n"))


def _prose(text: str) -> str:
    """Returns a paragraph in lines of at most 100 characters, after an empty line."""
    return "\n" + textwrap.fill(text, 100, break_on_hyphens=False) + "\n"


def _input_names(use: Use) -> list[str]:
    names = ["images"] if use.has_image else []
    return names + (["text_ids", "is_valid"] if use.has_text else [])


def _example_inputs(pretrained: Pretrained, use: Use) -> list[str]:
    size, length = pretrained.config.data.image_size, pretrained.text_length
    lines = []
    if use.has_image:
        lines.append(f"images = np.zeros((1, {size}, {size}, 3), np.uint8)  # Your images.")
    if use.has_text:
        lines.append(
            f"text_ids = np.zeros((1, {length}), np.int32)  # Of `{tokenizer_file(pretrained)}`."
        )
        lines.append("is_valid = text_ids != 0")
    return lines


def _files(pretrained: Pretrained, ending: str) -> str:
    """Returns what each file takes and gives."""
    lines = ["", "| file | inputs | outputs |", "| --- | --- | --- |"]
    for use in uses_of(pretrained):
        outputs = ["cls", *(["image_mean"] if use.has_image else [])]
        outputs += ["text_mean", "tokens"] if use.has_text else ["tokens"]
        inputs = ", ".join(_input_names(use))
        lines.append(f"| `{use.name}.{ending}` | {inputs} | {', '.join(outputs)} |")
    texts = "any length" if ending == "onnx" else "the length of training"
    text = "\n".join(lines) + "\n"
    text += _prose(
        "`images` are bytes, uint8 [batch, size, size, 3] in the order red, green, blue, resized "
        "and cropped as told below; their normalisation is a part of the file. `text_ids` are "
        "int32 [batch, length], padded with 0 at the end, and `is_valid` is True where an id is a "
        f"word. Batches may have any size, texts {texts}."
    )
    if ending == "stablehlo":
        text += _prose(
            "A program is read by the release of JAX that wrote it, and by later ones for about "
            "six months (`stablehlo.json` has release and date): hand it over, do not archive it. "
            "The weights are in `model.safetensors`; m3ae-tpu loads this folder too."
        )
    return text
