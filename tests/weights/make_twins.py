"""Makes the golden files of other libraries: small models with random weights, and their outputs.

They lie in `tests/golden/twins`, each as its library saves it. Run it again only for other cases,
in environments of their own, as these libraries stay out of the project's:

    python3.11 -m venv twins4
    twins4/bin/pip install torch==2.13.0+cpu transformers==4.57.3
    twins4/bin/python tests/weights/make_twins.py
    python3.11 -m venv twins5
    twins5/bin/pip install torch==2.13.0+cpu transformers==5.24.0
    twins5/bin/pip install --no-deps timm==1.0.31 torchvision==0.28.0
    twins5/bin/python tests/weights/make_twins.py

Where `import timm` fails with "operator torchvision::nms does not exist", as a torch for CPUs
beside a torchvision for GPUs does, empty `torchvision/_meta_registrations.py` in that environment.

Each folder holds the saved model and `numbers.npz`: float32 `images` [2, 24, 24, 3], normalised
already, and outputs that float64 models computed: `encoded`, the tokens after the final norm, and
for masked autoencoders `noise` [2, 36], whose order decides the mask (the smallest quarter is
visible), and `patches`, the predictions of all patches in row-major order.
"""

import argparse
import json
import pathlib
import shutil

import numpy as np
import torch  # pyright: ignore[reportMissingImports]
import transformers  # pyright: ignore[reportMissingImports]
from transformers.models.vit_mae.modeling_vit_mae import (  # pyright: ignore[reportMissingImports]
    get_2d_sincos_pos_embed,
)

GOLDEN = pathlib.Path(__file__).parents[1] / "golden" / "twins"
ENCODER = {
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 64,
    "image_size": 24,
    "patch_size": 4,
}
DECODER = {
    "decoder_hidden_size": 12,
    "decoder_num_hidden_layers": 2,
    "decoder_num_attention_heads": 3,
    "decoder_intermediate_size": 48,
}


def randomize(model, seed, *, keep=()):
    """Draws all parameters, but those whose name holds one of `keep`."""
    random = np.random.default_rng(seed)
    for name, parameter in model.named_parameters():
        shape = tuple(parameter.shape)
        values = random.normal(0, 0.3, shape)
        if len(shape) == 1 and ("norm" in name and name.endswith("weight")):
            values += 1
        if not any(part in name for part in keep):
            parameter.data = torch.tensor(values, dtype=torch.float32)


def inputs():
    random = np.random.default_rng(7)
    return random.normal(size=(2, 24, 24, 3)), random.permuted(
        np.tile(np.arange(36) / 36, (2, 1)), axis=1
    )


def write_numbers(folder, **arrays):
    arrays = {name: np.asarray(array, np.float32) for name, array in arrays.items()}
    np.savez_compressed(folder / "numbers.npz", **arrays)


def fresh(name):
    shutil.rmtree(GOLDEN / name, ignore_errors=True)
    (GOLDEN / name).mkdir(parents=True)
    return GOLDEN / name


@torch.no_grad()
def masked(model):
    """Computes encoder and decoder outputs of a ViTMAE, in float64."""
    images, noise = inputs()
    model = model.double().eval()
    pixels = torch.tensor(images).permute(0, 3, 1, 2)
    encoded = model.vit(pixels, noise=torch.tensor(noise)).last_hidden_state
    patches = model(pixels, noise=torch.tensor(noise)).logits
    return {"images": images, "noise": noise, "encoded": encoded, "patches": patches}


@torch.no_grad()
def whole(encode):
    """Computes an encoder's tokens, in float64."""
    images, _ = inputs()
    return {"images": images, "encoded": encode(torch.tensor(images).permute(0, 3, 1, 2))}


def make_vitmae(version):
    """A ViTMAE: release 4 keeps its own sine-cosine tables, release 5 has random ones."""
    config = transformers.ViTMAEConfig(**ENCODER, **DECODER, norm_pix_loss=version == "5")
    model = transformers.ViTMAEForPreTraining(config)
    keep = ("pos_embed", "position_embeddings") if version == "4" else ()
    randomize(model, 1, keep=keep)
    folder = fresh(f"vitmae_{version}")
    model.save_pretrained(folder)
    write_numbers(folder, **masked(model))


def make_vit(version):
    """A ViT: of release 4 the encoder with its pooler, of release 5 a classifier without biases of
    queries, keys and values.
    """
    if version == "4":
        model = transformers.ViTModel(transformers.ViTConfig(**ENCODER))
        encoder = model
    else:
        config = transformers.ViTConfig(
            **ENCODER, qkv_bias=False, layer_norm_eps=1e-6, hidden_act="gelu_pytorch_tanh"
        )
        model = transformers.ViTForImageClassification(config)
        encoder = model.vit
    randomize(model, 2)
    folder = fresh(f"vit_{version}")
    model.save_pretrained(folder)
    encoder = encoder.double().eval()
    write_numbers(folder, **whole(lambda pixels: encoder(pixels).last_hidden_state))


def make_timm(name, **arguments):
    """A ViT of timm, as its hub function writes a model to a folder."""
    import timm  # pyright: ignore[reportMissingImports]
    from timm.models import save_for_hf  # pyright: ignore[reportMissingImports]

    sizes = dict(img_size=24, patch_size=4, embed_dim=16, depth=2, num_heads=4, **arguments)
    model = timm.create_model("vit_tiny_patch16_224", num_classes=3, **sizes)
    randomize(model, 3)
    folder = fresh(name)
    save_for_hf(model, folder, model_args=sizes, safe_serialization=True)
    model = model.double().eval()
    write_numbers(folder, **whole(model.forward_features))


def make_facebook():
    """Files as the MAE authors publish them: `mae_visualize.pth` with a decoder, as a training
    checkpoint keeps it, and `mae_pretrain.pth` without.
    """
    config = transformers.ViTMAEConfig(**ENCODER, **DECODER, layer_norm_eps=1e-6)
    model = transformers.ViTMAEForPreTraining(config)
    randomize(model, 4, keep=("position_embeddings",))
    model.decoder.decoder_pos_embed.data = torch.tensor(
        get_2d_sincos_pos_embed(12, 6, add_cls_token=True), dtype=torch.float32
    )[None]
    state = {}
    for name, tensor in model.state_dict().items():
        for theirs, mae in (
            ("vit.embeddings.", ""),
            ("position_embeddings", "pos_embed"),
            ("patch_embeddings.projection", "patch_embed.proj"),
            ("vit.encoder.layer.", "blocks."),
            ("vit.layernorm", "norm"),
            ("decoder.decoder_layers.", "decoder_blocks."),
            ("decoder.", ""),
            ("attention.output.dense", "attn.proj"),
            ("attention.attention", "attn"),
            ("intermediate.dense", "mlp.fc1"),
            ("output.dense", "mlp.fc2"),
            ("layernorm_before", "norm1"),
            ("layernorm_after", "norm2"),
        ):
            name = name.replace(theirs, mae)
        state[name] = tensor
    for name in [name for name in state if ".query." in name]:
        parts = [state.pop(name.replace("query", part)) for part in ("query", "key", "value")]
        state[name.replace("query", "qkv")] = torch.cat(parts)
    folder = fresh("facebook_mae")
    args = argparse.Namespace(model="mae_vit_tiny_patch4", norm_pix_loss=True, epochs=1)
    training = {"optimizer": {"state": {}, "param_groups": []}, "epoch": 0, "args": args}
    torch.save({"model": state, **training}, folder / "mae_visualize.pth")
    encoder = {name: tensor for name, tensor in state.items() if "decoder" not in name}
    del encoder["mask_token"]
    torch.save({"model": encoder}, folder / "mae_pretrain.pth")
    numbers = masked(model)
    whole_images = whole(lambda pixels: every_token(model, pixels))
    write_numbers(folder, **numbers, encoded_whole=whole_images["encoded"])


def every_token(model, pixels):
    """Computes the tokens of whole images: the embedding of a ViTMAE would hide some."""
    embeddings = model.vit.embeddings
    embeddings.config.mask_ratio = 0.0
    order = torch.arange(36, dtype=torch.float64).repeat(len(pixels), 1)
    return model.vit(pixels, noise=order).last_hidden_state


def main():
    version = transformers.__version__.split(".")[0]
    make_vitmae(version)
    make_vit(version)
    if version == "4":
        make_facebook()
    else:
        make_timm("timm")
        make_timm("timm_layer_scale", init_values=0.5)
    for path in sorted(GOLDEN.rglob("*")):
        if path.name == "config.json":
            path.write_text(json.dumps(json.loads(path.read_text()), indent=2) + "\n")
        if path.is_file():
            print(path.relative_to(GOLDEN), path.stat().st_size)


if __name__ == "__main__":
    main()
