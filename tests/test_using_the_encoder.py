"""Guards `docs/using-the-encoder.md`: its Python runs, with the model of the package."""

import re

import jax
import numpy as np
import pytest
from PIL import Image
from repository import ROOT

from m3ae_tpu.features.extract import extract_features
from m3ae_tpu.features.options import FeatureOptions
from m3ae_tpu.pretrained.loading import load_pretrained
from m3ae_tpu.run.shipped import STARTER_MODEL
from m3ae_tpu.weights.exporting import export_model

PAGE = (ROOT / "docs" / "using-the-encoder.md").read_text()
ELSEWHERE = ("transformers", "timm")
"""Packages of another environment: what needs them was run by hand."""


@pytest.mark.slow
def test_the_code_of_the_page_runs(tmp_path, monkeypatch):
    pytest.importorskip("onnxruntime")
    monkeypatch.chdir(tmp_path)
    model = load_pretrained(STARTER_MODEL)
    pixels = np.random.default_rng(0).integers(0, 256, (40, 50, 3), np.uint8)
    Image.fromarray(pixels).save("cat.jpg")
    (tmp_path / "photos").mkdir()
    Image.fromarray(pixels).save("photos/cat.png")
    extract_features(model, ["photos"], tmp_path / "features", FeatureOptions())
    export_model(STARTER_MODEL, "onnx", tmp_path / "exports" / "onnx")
    blocks = [
        block
        for block in re.findall(r"^```python\n(.*?)^```", PAGE, re.DOTALL | re.MULTILINE)
        if not any(f"import {name}" in block or f"from {name}" in block for name in ELSEWHERE)
    ]
    assert len(blocks) == 8
    names = {}
    # Users' JAX is not as strict as the suite's.
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        for block in blocks:
            exec(block, names)
    assert names["actions"].shape == (8, 7)
    assert np.isfinite(names["value"])
    expected = model.encode(images=["cat.jpg"], texts=["a cat on a sofa"])
    np.testing.assert_allclose(names["image_mean"], np.asarray(expected.image_mean), atol=1e-5)
    np.testing.assert_allclose(names["text_mean"], np.asarray(expected.text_mean), atol=1e-5)
    assert names["array"].shape == (1, 128)
    assert names["scores"].shape == (1, 2)
