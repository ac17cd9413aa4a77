"""Guards the train step on a mesh of TPUs that is not here: kernels inside, and no collective more
than without.
"""

import dataclasses

import pytest

from m3ae_tpu.configs import debug
from m3ae_tpu.measure.step_compile import collectives, compile_for, described_mesh

pytestmark = pytest.mark.tpu_compiler


def test_kernels_are_inside_and_devices_exchange_nothing_more():
    model = dataclasses.replace(
        debug.CONFIG.model,
        vocab_size=256,
        encoder=dataclasses.replace(debug.CONFIG.model.encoder, width=128),
        decoder=dataclasses.replace(debug.CONFIG.model.decoder, width=128),
        compute_dtype="bfloat16",
    )
    config = dataclasses.replace(debug.CONFIG, model=model)
    mesh = described_mesh("v5e:2x2", 4)
    ours, plain = (
        compile_for(mesh, config, kernels).as_text() or "" for kernels in ("ours", "xla")
    )
    calls = [text.count('custom_call_target="tpu_custom_call"') for text in (ours, plain)]
    assert calls == [6, 0]  # Encoder, decoder and text head, forward and backward.
    assert collectives(ours) == collectives(plain)
    assert collectives(ours)
