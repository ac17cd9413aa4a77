"""The encoder as an ONNX graph, written operation by operation, for any batch and text length."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from m3ae_tpu.config import ModelConfig
from m3ae_tpu.model.inputs import Normalizer
from m3ae_tpu.weights.parameters import Arrays

_OPSET, _IR_VERSION = 20, 10  # Gelu needs 20; runtimes of two years ago read both.


def encoder_graph(
    arrays: Arrays,
    text_positions: np.ndarray | None,
    config: ModelConfig,
    normalizer: Normalizer,
    *,
    image_size: int | None,
) -> onnx.ModelProto:
    """Returns the graph of an encoder for images, texts, or both.

    Inputs: `images`, uint8 [batch, size, size, 3], red, green, blue; `text_ids`, int32
    [batch, length], and `is_valid`, bool [batch, length], True where an id is a word. Outputs, all
    float32: `cls`, `image_mean`, `text_mean` [batch, width], and `tokens` [batch, tokens, width].

    Args:
        arrays: Parameters in float32, with position codes of the image's patches.
        text_positions: Codes of the longest text [length, width]; None for a graph without texts.
        config: The model's settings.
        normalizer: The normaliser of images; it becomes a part of the graph.
        image_size: Side of the images, pixels; None for a graph without images.
    """
    graph = _Graph(arrays)
    num_patches = 0
    parts = []
    if image_size is not None:
        graph.add_input("images", TensorProto.UINT8, ["batch", image_size, image_size, 3])
        parts.append(_patches(graph, config.patch_size, image_size, normalizer))
        num_patches = (image_size // config.patch_size) ** 2
    if text_positions is not None:
        for name, dtype in (("text_ids", TensorProto.INT32), ("is_valid", TensorProto.BOOL)):
            graph.add_input(name, dtype, ["batch", "length"])
        parts.append(_words(graph, text_positions))
    batch = graph.op("Shape", graph.inputs[0].name, start=0, end=1)
    shape = graph.op("Concat", batch, graph.integers(1, config.encoder.width), axis=0)
    cls = arrays["cls_token"] + arrays.get("cls_position", np.float32(0))
    cls = graph.op("Expand", graph.constant("cls_token", cls[None, None]), shape)
    x = graph.op("Concat", cls, *parts, axis=1)
    is_key = None
    if text_positions is not None:
        shape = graph.op("Concat", batch, graph.integers(1 + num_patches), axis=0)
        ones = graph.op("Expand", graph.constant("true", np.ones((1, 1), bool)), shape)
        is_valid = graph.op("Concat", ones, "is_valid", axis=1)
        is_key = graph.op("Unsqueeze", is_valid, graph.integers(1, 2))
    for layer in range(config.encoder.num_layers):
        x = _block(graph, x, is_key, layer, config)
    width = config.encoder.width
    x = _norm(graph, x, "encoder.norm", config.norm_epsilon)
    graph.add_output("tokens", x, ["batch", "tokens", width])
    graph.add_output("cls", graph.op("Gather", x, graph.integer(0), axis=1), ["batch", width])
    if image_size is not None:
        patches = graph.op(
            "Slice", x, graph.integers(1), graph.integers(1 + num_patches), graph.integers(1)
        )
        mean = graph.op("ReduceMean", patches, graph.integers(1), keepdims=0)
        graph.add_output("image_mean", mean, ["batch", width])
    if text_positions is not None:
        words = graph.op(
            "Slice",
            x,
            graph.integers(1 + num_patches),
            graph.integers(2**31 - 1),
            graph.integers(1),
        )
        graph.add_output("text_mean", _mean_of_words(graph, words), ["batch", width])
    return graph.model()


class _Graph:
    """A graph under construction."""

    def __init__(self, arrays: Arrays):
        self._arrays = arrays
        self._nodes: list[onnx.NodeProto] = []
        self._initializers: dict[str, onnx.TensorProto] = {}
        self.inputs: list[onnx.ValueInfoProto] = []
        self._outputs: list[onnx.ValueInfoProto] = []

    def op(self, kind: str, *inputs: str, **attributes: Any) -> str:
        """Adds an operation; returns the name of its first output."""
        name = f"{kind.lower()}_{len(self._nodes)}"
        self._nodes.append(helper.make_node(kind, inputs, [name], name=name, **attributes))
        return name

    def split(self, x: str, num: int, axis: int) -> Sequence[str]:
        """Adds a split into equal parts; returns their names."""
        name = f"split_{len(self._nodes)}"
        parts = [f"{name}.{part}" for part in range(num)]
        node = helper.make_node("Split", [x], parts, name=name, axis=axis, num_outputs=num)
        self._nodes.append(node)
        return parts

    def constant(self, name: str, values: np.ndarray) -> str:
        """Adds values under a name that is not taken by others."""
        if name not in self._initializers:
            array = np.asarray(values, order="C")
            self._initializers[name] = numpy_helper.from_array(array, name)
        return name

    def integer(self, value: int) -> str:
        """Adds a number."""
        return self.constant(f"integer_{value}", np.asarray(value, np.int64))

    def integers(self, *values: int) -> str:
        """Adds a list of numbers."""
        name = "integers_" + "_".join(map(str, values))
        return self.constant(name, np.asarray(values, np.int64))

    def scalar(self, value: float) -> str:
        """Adds a float32."""
        return self.constant(f"float_{value!r}", np.asarray(value, np.float32))

    def parameter(self, name: str, layer: int | None = None) -> str:
        """Adds a parameter of the model, of one block where it is stacked.

        Queries, keys and values become one axis.
        """
        values = self._arrays[name]
        if layer is not None:
            values = values[layer]
            name = name.replace(".blocks.", f".blocks.{layer}.")
        if ".attention_in." in name:
            values = values.reshape(*values.shape[:-2], -1)
        return self.constant(name, values)

    def add_input(self, name: str, dtype: int, shape: Sequence[int | str]) -> None:
        self.inputs.append(helper.make_tensor_value_info(name, dtype, shape))

    def add_output(self, name: str, value: str, shape: Sequence[int | str]) -> None:
        self._nodes.append(helper.make_node("Identity", [value], [name], name=name))
        info = helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)
        self._outputs.append(info)

    def model(self) -> onnx.ModelProto:
        graph = helper.make_graph(
            self._nodes, "m3ae", self.inputs, self._outputs, list(self._initializers.values())
        )
        opsets = [helper.make_opsetid("", _OPSET)]
        return helper.make_model(
            graph, opset_imports=opsets, ir_version=_IR_VERSION, producer_name="m3ae-tpu"
        )


def _patches(graph: _Graph, side: int, image_size: int, normalizer: Normalizer) -> str:
    """Adds normalisation, the cutting of patches, and their embedding."""
    grid = image_size // side
    scale = np.asarray([1 / (255 * std) for std in normalizer.std], np.float32)
    offset = np.asarray(
        [mean / std for mean, std in zip(normalizer.mean, normalizer.std, strict=True)], np.float32
    )
    x = graph.op("Cast", "images", to=TensorProto.FLOAT)
    x = graph.op("Mul", x, graph.constant("image_scale", scale))
    x = graph.op("Sub", x, graph.constant("image_offset", offset))
    x = graph.op("Reshape", x, graph.integers(0, grid, side, grid, side, 3))
    x = graph.op("Transpose", x, perm=[0, 1, 3, 2, 4, 5])
    x = graph.op("Reshape", x, graph.integers(0, grid * grid, side * side * 3))
    x = _linear(graph, x, "image.embedding")
    return graph.op("Add", x, graph.parameter("image.positions"))


def _words(graph: _Graph, positions: np.ndarray) -> str:
    """Adds the embedding of words."""
    x = graph.op("Gather", graph.parameter("text.embedding.table"), "text_ids", axis=0)
    length = graph.op("Shape", "text_ids", start=1, end=2)
    codes = graph.op(
        "Slice",
        graph.constant("text_positions", positions),
        graph.integers(0),
        length,
        graph.integers(0),
    )
    x = graph.op("Add", x, codes)
    return graph.op("Add", x, graph.parameter("text.encoder_type"))


def _block(graph: _Graph, x: str, is_key: str | None, layer: int, config: ModelConfig) -> str:
    name, epsilon = "encoder.blocks.", config.norm_epsilon
    width, heads = config.encoder.width, config.encoder.num_heads
    normed = _norm(graph, x, f"{name}attention_norm", epsilon, layer)
    qkv = _linear(graph, normed, f"{name}attention_in", layer)
    query, key, value = (
        graph.op("Reshape", part, graph.integers(0, -1, heads, width // heads))
        for part in graph.split(qkv, 3, axis=2)
    )
    query = graph.op("Transpose", query, perm=[0, 2, 1, 3])
    query = graph.op("Mul", query, graph.scalar((width // heads) ** -0.5))
    key = graph.op("Transpose", key, perm=[0, 2, 3, 1])
    value = graph.op("Transpose", value, perm=[0, 2, 1, 3])
    logits = graph.op("MatMul", query, key)
    if is_key is not None:
        smallest = graph.scalar(float(np.finfo(np.float32).min))
        logits = graph.op("Where", is_key, logits, smallest)
    attended = graph.op("MatMul", graph.op("Softmax", logits, axis=-1), value)
    attended = graph.op("Transpose", attended, perm=[0, 2, 1, 3])
    attended = graph.op("Reshape", attended, graph.integers(0, -1, width))
    x = graph.op("Add", x, _linear(graph, attended, f"{name}attention_out", layer))
    normed = _norm(graph, x, f"{name}mlp_norm", epsilon, layer)
    approximate = "tanh" if config.activation == "gelu_tanh" else "none"
    hidden = graph.op(
        "Gelu", _linear(graph, normed, f"{name}mlp_in", layer), approximate=approximate
    )
    return graph.op("Add", x, _linear(graph, hidden, f"{name}mlp_out", layer))


def _linear(graph: _Graph, x: str, name: str, layer: int | None = None) -> str:
    x = graph.op("MatMul", x, graph.parameter(f"{name}.kernel", layer))
    return graph.op("Add", x, graph.parameter(f"{name}.bias", layer))


def _norm(graph: _Graph, x: str, name: str, epsilon: float, layer: int | None = None) -> str:
    scale, bias = (graph.parameter(f"{name}.{end}", layer) for end in ("scale", "bias"))
    return graph.op("LayerNormalization", x, scale, bias, axis=-1, epsilon=epsilon)


def _mean_of_words(graph: _Graph, words: str) -> str:
    """Adds the mean of the valid words; 0 for a row that has none."""
    weights = graph.op("Cast", "is_valid", to=TensorProto.FLOAT)
    count = graph.op("ReduceSum", weights, graph.integers(1), keepdims=1)
    weights = graph.op("Div", weights, graph.op("Max", count, graph.scalar(1.0)))
    weighted = graph.op("Mul", words, graph.op("Unsqueeze", weights, graph.integers(2)))
    return graph.op("ReduceSum", weighted, graph.integers(1), keepdims=0)
