"""The outputs that PyTorch's libraries compute from the tensors of a file, in NumPy and float64.

It follows the definitions of these libraries and knows nothing of our layouts, so it finds a tensor
that was written wrongly. A linear layer is x weightᵀ + bias, a patch is cut by a convolution.
"""

from collections.abc import Iterable, Mapping

import numpy as np
import scipy.special

from m3ae_tpu.weights.parameters import Parameter


class TorchTensors:
    """Tensors of a file, found through the tables of names."""

    def __init__(
        self,
        tensors: Mapping[str, np.ndarray],
        parameters: Iterable[Parameter],
        *,
        epsilon: float,
        activation: str,
    ):
        """Takes a file's tensors, the table of their names, and what the file's config says."""
        self._tensors = tensors
        self._theirs = {parameter.ours: parameter.theirs for parameter in parameters}
        self._epsilon, self._activation = epsilon, activation

    def encode(
        self, images: np.ndarray, *, num_layers: int, num_heads: int, visible: np.ndarray | None
    ) -> np.ndarray:
        """Computes the tokens after the final norm: class token, then patches.

        Args:
            images: Normalised, float64 [batch, height, width, 3].
            num_layers: Blocks.
            num_heads: Attention heads.
            visible: Numbers of the visible patches [batch, visible]; None: all, in order.
        """
        weight = self("image.embedding.kernel")
        width, _, side, _ = weight.shape
        batch, height = images.shape[:2]
        grid = height // side
        patches = images.reshape(batch, grid, side, grid, side, 3)
        x = np.einsum("bikjlc,dckl->bijd", patches, weight).reshape(batch, -1, width)
        positions = self("image.positions")[0]
        x = x + self("image.embedding.bias") + positions[1:]
        if visible is not None:
            x = np.take_along_axis(x, visible[:, :, None], axis=1)
        cls = np.broadcast_to(self("cls_token")[0] + positions[:1], (batch, 1, width))
        x = np.concatenate([cls, x], axis=1)
        return self._stack("encoder", x, num_layers, num_heads)

    def decode(
        self, encoded: np.ndarray, order: np.ndarray, *, num_layers: int, num_heads: int
    ) -> np.ndarray:
        """Computes the values that a masked autoencoder predicts of all patches, in order.

        Args:
            encoded: The class token and the visible patches [batch, 1 + visible, width].
            order: All patches, the visible first [batch, patches].
            num_layers: Blocks of the decoder.
            num_heads: Its attention heads.
        """
        x = self._linear(encoded, "decoder_input")
        batch, num_patches = order.shape
        hidden = np.broadcast_to(
            self("image.mask_token"), (batch, num_patches + 1 - x.shape[1], x.shape[2])
        )
        patches = np.concatenate([x[:, 1:], hidden], axis=1)
        back = np.argsort(order, axis=1)[:, :, None]
        patches = np.take_along_axis(patches, back, axis=1)
        x = np.concatenate([x[:, :1], patches], axis=1) + self("image.decoder_positions")
        return self._linear(self._stack("decoder", x, num_layers, num_heads), "image.head")[:, 1:]

    def __call__(self, ours: str, layer: int = 0) -> np.ndarray:
        """Returns the tensor that holds a parameter of ours, in its own layout.

        Those of queries, keys and values are put together.
        """
        names = [name.format(layer=layer) for name in self._theirs[ours]]
        return np.concatenate([self._tensors[name].astype(np.float64) for name in names])

    def _stack(self, name: str, x: np.ndarray, num_layers: int, num_heads: int) -> np.ndarray:
        for layer in range(num_layers):
            block = f"{name}.blocks"
            normed = self._norm(x, f"{block}.attention_norm", layer)
            qkv = self._linear(normed, f"{block}.attention_in", layer)
            attended = _attention(qkv, num_heads)
            x = x + self._linear(attended, f"{block}.attention_out", layer)
            normed = self._norm(x, f"{block}.mlp_norm", layer)
            hidden = self._gelu(self._linear(normed, f"{block}.mlp_in", layer))
            x = x + self._linear(hidden, f"{block}.mlp_out", layer)
        return self._norm(x, f"{name}.norm")

    def _linear(self, x: np.ndarray, name: str, layer: int = 0) -> np.ndarray:
        y, bias = x @ self(f"{name}.kernel", layer).T, f"{name}.bias"
        return y + self(bias, layer) if bias in self._theirs else y

    def _norm(self, x: np.ndarray, name: str, layer: int = 0) -> np.ndarray:
        y = x - x.mean(axis=-1, keepdims=True)
        y = y / np.sqrt(np.square(y).mean(axis=-1, keepdims=True) + self._epsilon)
        return y * self(f"{name}.scale", layer) + self(f"{name}.bias", layer)

    def _gelu(self, x: np.ndarray) -> np.ndarray:
        if self._activation == "gelu_tanh":
            return 0.5 * x * (1 + np.tanh((2 / np.pi) ** 0.5 * (x + 0.044715 * x**3)))
        return 0.5 * x * (1 + scipy.special.erf(x / 2**0.5))


def _attention(qkv: np.ndarray, num_heads: int) -> np.ndarray:
    batch, tokens, width = qkv.shape[0], qkv.shape[1], qkv.shape[2] // 3
    q, k, v = qkv.reshape(batch, tokens, 3, num_heads, width // num_heads).transpose(2, 0, 3, 1, 4)
    weights = scipy.special.softmax(q @ k.swapaxes(2, 3) / (width // num_heads) ** 0.5, axis=-1)
    return (weights @ v).swapaxes(1, 2).reshape(batch, tokens, width)
