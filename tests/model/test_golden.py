"""Guards parity with the paper's code: numbers that it computed on tiny models
(`tests/golden/reference/`).

`GOLDEN_DIR=DIR` checks the same files of another folder: other sizes, ratios and seeds.
"""

import functools
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from golden_cases import build, inputs, load, to_model_names

from m3ae_tpu.config import OptimizerConfig
from m3ae_tpu.kernels.attention.reference import attention_weights
from m3ae_tpu.kernels.cross_entropy import cross_entropy
from m3ae_tpu.model import losses, masking, patches, positions
from m3ae_tpu.model.inputs import Inputs
from m3ae_tpu.model.m3ae import M3AE
from m3ae_tpu.model.modality import gather
from m3ae_tpu.train.optimizer import gradient_transformation, learning_rate_schedule

CASES = ["paired", "image_only", "text_only", "nopad", "heavypad"]
DTYPES = ["f32", "f64"]
# Outputs and intermediates, losses, gradients.
TOLERANCES = {"f32": (2e-5, 1e-5, 2e-6), "f64": (1e-9, 1e-9, 1e-9)}


@pytest.fixture(autouse=True)
def precision(request):
    """Float64 cases run in 64-bit mode, and only they."""
    dtype = (
        request.node.callspec.params.get("dtype", "f64")
        if hasattr(request.node, "callspec")
        else "f64"
    )
    with jax.enable_x64(dtype == "f64"), jax.default_matmul_precision("highest"):
        yield


def objective(model, taken, masks, *, config):
    """The weighted loss, and the terms it is made of."""
    hidden = model.decode_hidden(taken, masks)
    total, terms = 0.0, {}
    if taken.images is not None:
        target = gather(patches.patchify(taken.images, model.patch_size), masks.image.hidden)
        terms["loss/image_loss"] = losses.patch_loss(model.image.head(hidden.image), target)
        total += config["image_loss_weight"] * terms["loss/image_loss"]
    if taken.text_ids is not None:
        ids = gather(taken.text_ids, masks.text.hidden)
        is_counted = gather(taken.is_valid, masks.text.hidden)
        head = model.text.head
        # Without `shard_map`: these batches do not divide over the suite's devices.
        rows = cross_entropy(hidden.text, head.kernel, head.bias, ids, is_counted)
        terms["loss/text_loss"], terms["loss/text_accuracy"], _ = losses.token_loss(rows)
        total += config["text_loss_weight"] * terms["loss/text_loss"]
    return total, terms | {"loss/total": total}


@jax.jit
def of_logits(logits, ids, is_counted):
    """The text loss of given logits: they pass a projection that changes nothing."""
    vocab = logits.shape[2]
    head = jnp.eye(vocab, dtype=logits.dtype), jnp.zeros(vocab, logits.dtype)
    return losses.token_loss(cross_entropy(logits, *head, ids, is_counted))


def check(got, wanted, tolerance, name):
    """Equal within `tolerance` of the larger of 1 and the array's own size."""
    scale = max(1.0, float(np.abs(wanted).max(initial=0)))
    np.testing.assert_allclose(
        np.asarray(got), wanted, rtol=0, atol=tolerance * scale, err_msg=name
    )


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("case", CASES)
def test_outputs_and_intermediates(case, dtype):
    arrays, config = load(f"{case}_{dtype}")
    model = build(config, dtype)
    arguments = inputs(arrays, config, dtype)
    got = jax.jit(intermediates)(model, *arguments)
    for side in ("encoder", "decoder"):
        name = f"inter/{side}_padding_mask"
        if name in arrays and name in got:
            np.testing.assert_array_equal(~np.asarray(got[name]), arrays[name] > 0)
    wanted = {name: value for name, value in arrays.items() if name.startswith(("inter/", "out/"))}
    wanted = {name: value for name, value in wanted.items() if "padding_mask" not in name}
    assert wanted.keys() <= got.keys()
    for name, value in wanted.items():
        check(got[name], value, TOLERANCES[dtype][0], name)
    for name, value in got.items():
        if name.startswith("loss/"):
            check(value, arrays[name], TOLERANCES[dtype][1], name)


def intermediates(model, taken, masks):
    """All that the reference recorded on the way, under its names."""
    got = {}
    x, is_valid = model.embed(taken, masks)
    got["inter/encoder_in"] = x
    if is_valid is not None:
        got["inter/encoder_padding_mask"] = is_valid
    encoded = run_blocks(got, "encoder", model.encoder, x, is_valid, slice(None))
    kept_patches = 0 if masks.image is None else masks.image.visible.shape[1]
    got["out/encoder_cls"] = encoded[:, :1]
    got["out/encoder_image"] = encoded[:, 1 : 1 + kept_patches]
    got["out/encoder_text"] = encoded[:, 1 + kept_patches :]

    # The decoder's tokens stand in the selection's order here, in image and text order there.
    x, is_valid = model.embed_for_decoder(encoded, taken, masks)
    back = decoder_places(masks)
    got["inter/decoder_in"] = x[:, back]
    if is_valid is not None:
        got["inter/decoder_padding_mask"] = is_valid[:, back]
    decoded = run_blocks(got, "decoder", model.decoder, x, is_valid, back)
    num_patches = 0 if masks.image is None else sum(places.shape[1] for places in masks.image)
    if taken.images is not None:
        got["out/image"] = model.image.head(decoded[:, 1 : 1 + num_patches])
        target = patches.patchify(taken.images, model.patch_size)
        got["loss/image_loss_all"] = losses.patch_loss(got["out/image"], target)
    if taken.text_ids is not None:
        got["out/text"] = model.text.head(decoded[:, 1 + num_patches :])
        loss, accuracy, _ = of_logits(got["out/text"], taken.text_ids, taken.is_valid)
        got |= {"loss/text_loss_all": loss, "loss/text_accuracy_all": accuracy}
    return got


def run_blocks(got, name, transformer, x, is_valid, back):
    """Records a stack's outputs block by block, its tokens in the order `back`."""
    for layer in range(transformer.blocks.attention_norm.scale.shape[0]):
        block = jax.tree.map(lambda leaf, layer=layer: leaf[layer], transformer.blocks)
        if layer == 0:
            weights = attention_weights(block.project_qkv(x), is_valid, block.num_heads)
            got[f"inter/{name}_attention_0"] = weights[:, :, back][:, :, :, back]
        x = block(x, is_valid)
        got[f"inter/{name}_block_{layer}"] = x[:, back]
    got[f"inter/{name}_out"] = transformer.norm(x)[:, back]
    return got[f"inter/{name}_out"]


def decoder_places(masks):
    """For every token in the reference's decoder order its place in ours."""
    places, start = [jnp.zeros(1, jnp.int32)], 1
    for selection in masks:
        if selection is not None:
            order = jnp.concatenate([selection.visible[0], selection.hidden[0]])
            places.append(start + jnp.argsort(order).astype(jnp.int32))
            start += len(order)
    return jnp.concatenate(places)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("case", CASES)
def test_losses_and_gradients(case, dtype):
    arrays, config = load(f"{case}_{dtype}")
    model = build(config, dtype)
    arguments = inputs(arrays, config, dtype)
    gradient = jax.jit(
        jax.value_and_grad(functools.partial(objective, config=config), has_aux=True)
    )
    (_, terms), gradients = gradient(model, *arguments)
    for name, value in terms.items():
        check(value, arrays[name], TOLERANCES[dtype][1], name)
    recorded = {
        name.removeprefix("grad/"): value
        for name, value in arrays.items()
        if name.startswith("grad/")
    }
    if not recorded:
        return
    wanted = to_model_names(recorded, config)
    got = {
        jax.tree_util.keystr(path): leaf
        for path, leaf in jax.tree_util.tree_leaves_with_path(gradients)
    }
    assert got.keys() == wanted.keys()
    for name, value in wanted.items():
        np.testing.assert_allclose(
            got[name], value, rtol=0, atol=TOLERANCES[dtype][2], err_msg=name
        )


@pytest.mark.parametrize("dtype", DTYPES)
def test_features_without_masking(dtype):
    arrays, config = load(f"repr_{dtype}")
    model = build(config, dtype)
    name = {"f32": "float32", "f64": "float64"}[dtype]
    images = arrays["in/image"].astype(name)
    text = arrays["in/text"], arrays["in/text_padding_mask"] == 0
    tolerance = TOLERANCES[dtype][0]
    encode = jax.jit(M3AE.encode)
    for case, taken in {
        "paired": Inputs(images, *text),
        "image_only": Inputs(images),
        "text_only": Inputs(None, *text),
    }.items():
        check(encode(model, taken).tokens, arrays[f"out/{case}"], tolerance, case)


@pytest.mark.parametrize("dtype", DTYPES)
def test_functions_array_by_array(dtype):
    arrays, _ = load(f"functions_{dtype}")
    tolerance = TOLERANCES[dtype][1]
    for name in [name for name in arrays if name.startswith("pos")]:
        width, length = map(int, name.split("/")[1].split("_"))
        side = round(length**0.5)
        table = positions.image_positions((side, side), width)
        if name.startswith("pos1d"):
            table = positions.text_positions(length, width)
        # The reference's float32 tables round their angles: 2e-6 off at positions around 60.
        check(table[None], arrays[name], 5e-6 if dtype == "f32" else 1e-9, name)

    for image, patched in [(name, patched) for name, patched in patch_arrays(arrays)]:
        size = int(patched.rsplit("_p", 1)[1])
        patches_here = patches.patchify(jnp.asarray(arrays[image]), size)
        np.testing.assert_array_equal(patches_here, arrays[patched], err_msg=patched)
        grid = (arrays[image].shape[1] // size, arrays[image].shape[2] // size)
        np.testing.assert_array_equal(
            patches.unpatchify(patches_here, grid, size), arrays[image], err_msg=image
        )

    output, target, is_hidden = (
        jnp.asarray(arrays[f"mse/{name}"]) for name in ("output", "target", "valid")
    )
    check(
        losses.patch_loss(output, target),
        arrays["mse/loss_valid_none"],
        tolerance,
        "mse/loss_valid_none",
    )
    # Rows with other numbers of hidden patches: the reference weighs each row's mean alike.
    rows = [
        losses.patch_loss(output[i][is_hidden[i] > 0][None], target[i][is_hidden[i] > 0][None])
        for i in range(len(is_hidden))
    ]
    counted = [
        row for row, is_counted in zip(rows, is_hidden.sum(axis=1) > 0, strict=True) if is_counted
    ]
    if len(counted) == len(rows):
        check(np.mean([float(row) for row in rows]), arrays["mse/loss"], tolerance, "mse/loss")

    logits, ids = jnp.asarray(arrays["xent/logits"]), jnp.asarray(arrays["xent/tokens"])
    for suffix, is_counted in (
        ("", arrays["xent/valid"] > 0),
        ("_valid_none", np.ones(ids.shape, bool)),
    ):
        loss, accuracy, count = of_logits(logits, ids, jnp.asarray(is_counted))
        check(loss, arrays[f"xent/loss{suffix}"], tolerance, f"xent/loss{suffix}")
        check(accuracy, arrays[f"xent/accuracy{suffix}"], tolerance, f"xent/accuracy{suffix}")
        assert int(count) == is_counted.sum()

    kept = [
        masking.num_visible(*pair)
        for pair in zip(arrays["keep/length"].tolist(), arrays["keep/ratio"].tolist(), strict=True)
    ]
    np.testing.assert_array_equal(kept, arrays["keep/kept"])


def patch_arrays(arrays):
    """Pairs of an image's name and the name of its patches."""
    for name in arrays:
        if name.startswith("patch/") and "patches" in name:
            stem = name.removeprefix("patch/").split("patches")[0]
            [image] = [
                other
                for other in arrays
                if other.startswith("patch/")
                and "patches" not in other
                and other.removeprefix("patch/").startswith(f"{stem}image")
            ]
            yield image, name


@pytest.mark.parametrize("run", ["noclip", "clip"])
@pytest.mark.parametrize("dtype", DTYPES)
def test_optimizer_step_by_step(run, dtype):
    arrays, config = load("adamw_tiny" if dtype == "f32" else "adamw_tiny_f64")
    name = {"f32": "float32", "f64": "float64"}[dtype]
    names = [key.removeprefix("init/") for key in arrays if key.startswith("init/")]
    parameters: Any = {key: arrays[f"init/{key}"].astype(name) for key in names}
    settings = OptimizerConfig(
        base_learning_rate=config["lr_peak_value"],
        warmup_fraction=config["warmup_steps"] / config["decay_steps"],
        beta1=config["b1"],
        beta2=config["b2"],
        weight_decay=config["weight_decay"],
        clip_norm=config["clip_runs"][run],
    )
    schedule = learning_rate_schedule(
        settings, batch_size=config["batch_size"], num_steps=config["decay_steps"]
    )
    optimizer = gradient_transformation(
        settings, schedule, is_decayed={key: bool(arrays[f"decay/{key}"]) for key in names}
    )
    state = jax.jit(optimizer.init)(parameters)

    @eqx.filter_jit
    def update(parameters: Any, state: Any, gradients: Any) -> tuple[Any, Any, Any]:
        with jax.numpy_dtype_promotion("standard"):
            updates, state = optimizer.update(gradients, state, parameters)
            norm = optax.tree.norm(gradients)
            return optax.apply_updates(parameters, updates), state, norm

    for step in range(len(arrays[f"{run}/lr"])):
        gradients = {key: arrays[f"grad/{key}"][step].astype(name) for key in names}
        np.testing.assert_allclose(
            schedule(step), arrays[f"{run}/lr"][step], rtol=1e-6 if dtype == "f32" else 1e-12
        )
        parameters, state, norm = update(parameters, state, gradients)
        check(norm, arrays[f"{run}/grad_global_norm"][step], 1e-6, "norm")
        for key in names:
            tolerance = 1e-6 if dtype == "f32" else 1e-10
            check(
                parameters[key],
                arrays[f"{run}/params/{key}"][step],
                tolerance,
                f"{key} after step {step}",
            )


def test_schedules():
    arrays, _ = load("adamw_tiny_f64")
    for i in range(sum(name.endswith("/args") for name in arrays)):
        initial, peak, warmup, total, end = arrays[f"schedule/{i}/args"].tolist()
        if initial or end:
            continue  # Our schedule starts and ends at 0, as every published run did.
        settings = OptimizerConfig(base_learning_rate=peak, warmup_fraction=warmup / total)
        schedule = learning_rate_schedule(settings, batch_size=256, num_steps=int(total))
        rates = [
            np.asarray(schedule(step)).item() for step in range(len(arrays[f"schedule/{i}/lr"]))
        ]
        np.testing.assert_allclose(rates, arrays[f"schedule/{i}/lr"], rtol=1e-12, atol=1e-18)
