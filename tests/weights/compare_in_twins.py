"""Compares exports with the model in an environment of transformers, timm and onnxruntime.

Exports of one model lie in one folder, each named by its format: hf, hf_mae, timm and onnx. First
the model's own numbers, here; then those of the others, in the environments of `make_twins.py`,
with onnxruntime:

    .venv/bin/python -m pipelines.export_weights --model=RUN --format=hf --output=exports/hf
    PYTHONPATH=. .venv/bin/python tests/weights/compare_in_twins.py RUN exports/numbers.npz
    twins5/bin/python tests/weights/compare_in_twins.py exports

`docs/results/weights.md` has what it printed.
"""

import importlib.util
import pathlib
import sys
from typing import Any

import numpy as np

TEXTS = ["a red car on a road", "", "cat", "two dogs in the snow", "x", "green leaf", "music"]


def write_numbers(workdir, path):
    """Writes seven examples and what the model computes of them."""
    import jax
    import jax.numpy as jnp

    import m3ae_tpu
    from m3ae_tpu.batch import Rows
    from m3ae_tpu.model.masking import Masks, Selection, num_visible

    model = m3ae_tpu.load(workdir)
    random, config = np.random.default_rng(5), model.config
    size = config.data.image_size
    images = random.integers(0, 256, (7, size, size, 3), np.uint8)
    inputs = model.task.make_inputs(Rows(images=jnp.asarray(images)))
    numbers = {"images": images, "pixels": inputs.images}
    given = {"image": {"images": list(images)}}
    if model.task.has_texts:
        rows = model.rows(texts=TEXTS)
        numbers |= {"text_ids": rows.text_ids, "is_valid": rows.is_valid}
        given["text"] = {"texts": TEXTS}
    if model.task.has_pairs:
        given["image_text"] = {"images": list(images), "texts": TEXTS}
    for use, examples in given.items():
        features = model.encode(**examples)._asdict()
        numbers |= {f"{use} {name}": array for name, array in features.items() if array is not None}
    if model.model.decoder is not None:
        num_patches = (size // config.model.patch_size) ** 2
        order = random.permuted(np.tile(np.arange(num_patches), (7, 1)), axis=1)
        count = num_visible(num_patches, config.masking.image_mask_ratio)
        masks = Masks(image=Selection.from_order(jnp.asarray(order, jnp.int32), count))
        reconstruct = jax.jit(lambda model: model.reconstruct(inputs, masks).patches)
        numbers |= {"order": order, "patches": reconstruct(model.model)}
    arrays: Any = {name: np.asarray(array) for name, array in numbers.items()}
    np.savez(path, **arrays)


def report(name, output, wanted):
    print(f"{name}: {np.abs(np.asarray(output) - wanted).max():.1e} of {np.abs(wanted).max():.2f}")


def compare_transformers(folder, numbers):
    import torch  # pyright: ignore[reportMissingImports]
    import transformers  # pyright: ignore[reportMissingImports]

    print("transformers", transformers.__version__)
    pixels = torch.tensor(numbers["pixels"]).permute(0, 3, 1, 2)
    model, loaded = transformers.AutoModel.from_pretrained(
        folder / "hf", add_pooling_layer=False, output_loading_info=True
    )
    print(type(model).__name__, {name: keys for name, keys in loaded.items() if keys})
    report("hf", model.eval()(pixels).last_hidden_state.detach(), numbers["image tokens"])
    model, loaded = transformers.ViTMAEForPreTraining.from_pretrained(
        folder / "hf_mae", output_loading_info=True
    )
    print(type(model).__name__, {name: keys for name, keys in loaded.items() if keys})
    order = numbers["order"]
    noise = torch.tensor(np.argsort(order, axis=1) / order.shape[1])
    patches = model.eval()(pixels, noise=noise).logits.detach().numpy()
    hidden = order[:, order.shape[1] - numbers["patches"].shape[1] :, None]
    report("hf_mae", np.take_along_axis(patches, hidden, axis=1), numbers["patches"])


def compare_timm(folder, numbers):
    import timm  # pyright: ignore[reportMissingImports]
    import torch  # pyright: ignore[reportMissingImports]

    model = timm.create_model(f"local-dir:{folder / 'timm'}", pretrained=True).eval()
    pixels = torch.tensor(numbers["pixels"]).permute(0, 3, 1, 2)
    print("timm", timm.__version__, timm.data.resolve_model_data_config(model))
    report("timm", model.forward_features(pixels).detach(), numbers["image tokens"])


def compare_onnx(folder, numbers):
    import onnxruntime  # pyright: ignore[reportMissingImports]

    print("onnxruntime", onnxruntime.__version__)
    for path in sorted((folder / "onnx").glob("*.onnx")):
        session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
        for batch in (1, 7):
            given = {each.name: numbers[each.name][:batch] for each in session.get_inputs()}
            names = [each.name for each in session.get_outputs()]
            for name, output in zip(names, session.run(names, given), strict=True):
                wanted = numbers[f"{path.stem} {name}"][:batch]
                report(f"{path.name}, batch of {batch}, {name}", output, wanted)


def main():
    if len(sys.argv) == 3:
        write_numbers(sys.argv[1], sys.argv[2])
        return
    folder = pathlib.Path(sys.argv[1])
    numbers = dict(np.load(folder / "numbers.npz"))
    compare_transformers(folder, numbers)
    for library, compare in (("timm", compare_timm), ("onnxruntime", compare_onnx)):
        if importlib.util.find_spec(library):
            compare(folder, numbers)


if __name__ == "__main__":
    main()
