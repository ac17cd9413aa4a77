"""The forms in which each kind of device computes what all compute alike: the one table of them.

A rewrite that makes the compiled step faster on one kind of device makes it slower on another. Each
such choice is a field here, which the model reads from its `Operations`. Results differ by rounding
alone, and parameters, gradients and checkpoints have the same shapes and names in every form.
"""

from typing import NamedTuple


class Forms(NamedTuple):
    """Choices of one kind of device. The defaults are those of a CPU."""

    keeps_token_axis: bool = False
    """Products take activations as [batch, tokens, width], not as rows [batch * tokens, width].

    Where a tile of 8 does not divide the tokens, rows on a TPU are a copy of the activation.
    Without it a product writes its part of the stacks that a scan keeps. On CPUs a gradient that
    contracts batch and tokens separately takes 1.5 times as long.
    """
    keeps_qkv_in_stack: bool = False
    """In the loop over blocks, attention's kernels take queries, keys and values out of the stack
    that is kept for the gradient, by the block's number; see `kernels/attention/tpu/stack.py`.

    Otherwise a copy of a slice of the stack is made for them.
    """
    bias_products: tuple[str, ...] = ()
    """Layers that sum their bias's gradient over rows as a product with ones, by their names.

    From memory a TPU sums rows at less than half of its speed. Layers whose results' gradients come
    out of a product sum them with it, for nothing.
    """
    has_gradient_slots: bool = False
    """In the loop over blocks, each block's gradients go into stacks that were not cleared first,
    see `parallel.slots`. A scan clears those that it fills.
    """
    keeps_moments: bool = False
    """Mean and deviation of each norm's input are kept, and its gradient is computed from them.

    The sums that it needs are then part of the product before. In a scan that is two numbers a
    token; unrolled, as on GPUs, they are kept anyway.
    """
    folds_norms: bool = False
    """Scale and bias of a norm go into the kernel and bias of the product that follows.

    The norm's gradient is then one kernel that reads the norm's input again. On TPUs that norm is
    part of other fusions already, and the scan would keep one array more.
    """
    keeps_gelu_input: bool = False
    """The MLP's gradient computes GELU's derivative from its input; its tanh is not kept.

    In a loop over layers `jax.checkpoint` does the same. Where layers are unrolled XLA finds the
    second computation equal to the first one, and keeps what both share.
    """
    has_gelu_epilogue: bool = False
    """GELU by tanh is written as cuBLASLt's epilogue is recognised: the product computes it.

    False writes an equal form, which a kernel of its own computes: if the epilogue is slow on a
    chip, 2.3 ms more in the model of a step of `m3ae_base`.
    """
    has_three_products: bool = False
    """Queries, keys and values are three products: cuDNN takes three arrays, and splitting one is
    a copy, as is joining its gradient.
    """
    sums_rows: bool = False
    """Residual sums and norms are of rows [batch * tokens, width], as products give them.

    cuBLASLt adds the residual to its product. Given as another view, XLA takes it for free to be
    overwritten, and copies it first, as norms and their gradients still need it.
    """
    unrolls_layers: bool = False
    """Layers are unrolled, unless the config says how many, or remat: a loop copies each layer's
    parameters and what it keeps, on an H100 24 % of a step.
    """
    compiler_options: tuple[tuple[str, int], ...] = ()
    """XLA's options for the train step, by name."""

    def without(self, *names: str) -> "Forms":
        """Returns the forms with some of them, by name, as on a CPU."""
        return self._replace(**{name: self._field_defaults[name] for name in names})


_FORMS = {
    "tpu": Forms(
        keeps_token_axis=True,
        keeps_qkv_in_stack=True,
        has_gradient_slots=True,
        keeps_moments=True,
        bias_products=("blocks.attention_in", "blocks.attention_out", "blocks.mlp_out"),
    ),
    "gpu": Forms(
        folds_norms=True,
        keeps_gelu_input=True,
        has_gelu_epilogue=True,
        has_three_products=True,
        sums_rows=True,
        unrolls_layers=True,
        # Products of one input stay apart: XLA would join them, and copy their results apart.
        compiler_options=(("xla_gpu_dot_merger_threshold_mb", 0),),
    ),
}


def forms_of(platform: str) -> Forms:
    """Returns the forms for devices of a platform, as JAX names it: "cpu", "gpu", "tpu"."""
    return _FORMS.get(platform, Forms())
