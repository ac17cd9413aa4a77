"""Guards extracted features: those of the model, whatever the batch, the devices or a kill."""

import dataclasses
import json

import jax
import numpy as np
import pytest
import small_run
from PIL import Image
from small_inputs import CAPTIONS, as_png, contents, write_photos
from small_run import trained_run, with_source

from m3ae_tpu.errors import UserError
from m3ae_tpu.features import extract
from m3ae_tpu.features.extract import extract_features
from m3ae_tpu.features.options import FeatureOptions
from m3ae_tpu.features.parts import FeatureFolder
from m3ae_tpu.features.reading import read_features
from m3ae_tpu.parallel.mesh import make_mesh

RUN = trained_run()
ALL = FeatureOptions(pooling="cls,image_mean,text_mean,mean,tokens", layers="all", norm="all")
GOOD = [number for number in (*range(1, 20, 2), *range(0, 20, 2)) if number not in (3, 7)]


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    return write_photos(tmp_path_factory.mktemp("photos") / "in", captions=True)


def run(given, output, *, model=RUN, batch_size=64, **options):
    return extract_features(
        model, [str(given)], output, FeatureOptions(**options), batch_size=batch_size
    )


def test_features_of_images_are_those_of_the_model(photos, tmp_path):
    manifest = run(photos, tmp_path / "out", kind="image", part_size=7)
    features = read_features(tmp_path / "out")
    expected = RUN.encode(images=[as_png(number) for number in GOOD])
    np.testing.assert_allclose(features.array(), np.asarray(expected.image_mean), atol=1e-6)
    assert features.names == ("image_mean",)
    assert features.labels == ["cats"] * 8 + ["dogs"] * 10
    assert [line["row"] for line in features.index] == [*range(5), *range(7), *range(6)]
    assert (manifest["given"], manifest["rows"]) == (20, 18)
    assert manifest["dropped"] == {"HTML is not read": 1, "damaged image": 1}
    lines = (tmp_path / "out" / "dropped.jsonl").read_text().splitlines()
    dropped = [json.loads(line) for line in lines]
    assert [line["place"][-6:] for line in dropped] == ["03.png", "07.png"]
    assert manifest["parts"][0]["files"].keys() == {"part-00000.npy"}


def test_features_of_pairs_are_those_of_the_model(photos, tmp_path):
    manifest = run(photos, tmp_path / "out", pooling="cls,image_mean,text_mean,tokens")
    features = read_features(tmp_path / "out")
    assert manifest["kind"] == "both"
    texts = [CAPTIONS[number % 3] for number in GOOD]
    expected = RUN.encode(images=[as_png(number) for number in GOOD], texts=texts)
    for name in ("cls", "image_mean", "text_mean"):
        np.testing.assert_allclose(features.array(name), getattr(expected, name), atol=1e-6)
    is_valid = features.array("token_is_valid")
    assert is_valid.shape == (18, 1 + 16 + 8)
    np.testing.assert_allclose(
        features.array("tokens"), np.where(is_valid[..., None], expected.tokens, 0), atol=1e-6
    )
    assert manifest["cut_texts"] == sum(number % 3 > 0 for number in GOOD)


def test_features_of_texts_alone_are_those_of_the_model(tmp_path):
    (tmp_path / "lines.txt").write_text("\n".join(CAPTIONS))
    run(tmp_path / "lines.txt", tmp_path / "out")
    features = read_features(tmp_path / "out")
    assert features.names == ("text_mean",)
    expected = RUN.encode(texts=list(CAPTIONS)).text_mean
    np.testing.assert_allclose(features.array(), np.asarray(expected), atol=1e-6)


def test_layers_are_those_of_the_model_before_and_after_the_norm(photos, tmp_path):
    images = [as_png(number) for number in GOOD]
    expected = RUN.encode_layers(images=images).image_mean
    for norm in ("last", "none", "all"):
        run(photos, tmp_path / norm, kind="image", layers="1,-1", norm=norm, concatenate=True)
    arrays = {norm: read_features(tmp_path / norm).array() for norm in ("last", "none", "all")}
    np.testing.assert_allclose(
        arrays["last"], np.concatenate([*np.asarray(expected)], axis=1), atol=1e-5
    )
    first, last = slice(0, 16), slice(16, 32)
    np.testing.assert_array_equal(arrays["none"][:, first], arrays["last"][:, first])
    np.testing.assert_array_equal(arrays["all"][:, last], arrays["last"][:, last])
    assert np.abs(arrays["none"][:, last] - arrays["last"][:, last]).max() > 0.1
    assert np.abs(arrays["all"][:, first] - arrays["last"][:, first]).max() > 0.1


def test_the_batch_and_the_devices_change_no_feature(photos, tmp_path, monkeypatch):
    extract_features(RUN, [str(photos)], tmp_path / "64", ALL, batch_size=64)
    extract_features(RUN, [str(photos)], tmp_path / "1", ALL, batch_size=1)
    monkeypatch.setattr(small_run, "make_mesh", lambda: make_mesh(devices=jax.devices()[:1]))
    extract_features(trained_run(), [str(photos)], tmp_path / "alone", ALL, batch_size=5)
    features = read_features(tmp_path / "64")
    for other in map(read_features, (tmp_path / "1", tmp_path / "alone")):
        for name in features.names:
            np.testing.assert_allclose(features.array(name), other.array(name), atol=2e-7)


def test_an_interrupted_extraction_ends_in_the_same_bytes(photos, tmp_path, monkeypatch):
    run(photos, tmp_path / "whole", part_size=3)
    write_part = FeatureFolder.write_part

    def interrupted(self, number, *arguments, **named):
        if number == 3:
            (self.path / ".part-00003.npy.unfinished").write_bytes(b"half")
            raise KeyboardInterrupt
        return write_part(self, number, *arguments, **named)

    with monkeypatch.context() as patch:
        patch.setattr(FeatureFolder, "write_part", interrupted)
        with pytest.raises(KeyboardInterrupt):
            run(photos, tmp_path / "killed", part_size=3)
    assert not (tmp_path / "killed" / "manifest.json").exists()
    with pytest.raises(UserError, match="holds no finished features"):
        read_features(tmp_path / "killed")
    encoded = []
    with monkeypatch.context() as patch:
        encode = extract.make_rows
        patch.setattr(
            extract, "make_rows", lambda model, batch: encoded.append(batch) or encode(model, batch)
        )
        run(photos, tmp_path / "killed", part_size=3)
    assert sum(map(len, encoded)) == 20 - 9
    assert contents(tmp_path / "killed") == contents(tmp_path / "whole")


DAMAGED = {0: "part-00000.npy", 2: ".parts/00002.json"}


def change_a_byte(path):
    """Damages a file in its last third; its size stays."""
    content = bytearray(path.read_bytes())
    content[-len(content) // 3] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize("damaged", DAMAGED)
def test_a_finished_extraction_makes_only_what_is_missing_or_damaged(
    photos, tmp_path, monkeypatch, damaged
):
    run(photos, tmp_path / "out", part_size=5)
    before = contents(tmp_path / "out")
    (tmp_path / "out" / "part-00001.npy").unlink()
    (tmp_path / "out" / "part-00003.npy").write_bytes(b"cut")
    change_a_byte(tmp_path / "out" / DAMAGED[damaged])
    made, write_part = [], FeatureFolder.write_part
    monkeypatch.setattr(
        FeatureFolder,
        "write_part",
        lambda self, number, *arguments, **named: (
            made.append(number) or write_part(self, number, *arguments, **named)
        ),
    )
    run(photos, tmp_path / "out", part_size=5)
    assert made == sorted([1, 3, damaged])
    assert contents(tmp_path / "out") == before


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"kind": "image", "pooling": "cls"}, "another form .poolings = image_mean there, cls"),
        ({"kind": "image", "layers": "1"}, r"layers = 2 there, 1 now"),
        ({"kind": "image", "dtype": "float16"}, "dtype = float32 there, float16 now"),
    ],
)
def test_features_of_two_kinds_do_not_share_a_folder(photos, tmp_path, options, message):
    run(photos, tmp_path, kind="image")
    with pytest.raises(UserError, match=message):
        run(photos, tmp_path, **options)


def test_another_model_or_input_is_refused_by_name(photos, tmp_path):
    run(photos, tmp_path / "out", kind="image")
    other = dataclasses.replace(RUN, model=jax.tree.map(lambda leaf: leaf * 2, RUN.model))
    with pytest.raises(UserError, match=r"holds features of another model \(model_digest = "):
        run(photos, tmp_path / "out", model=other, kind="image")
    with pytest.raises(UserError, match=r"holds features of another input \(input_digest = "):
        run(write_photos(tmp_path / "fewer", 9), tmp_path / "out", kind="image")


@pytest.mark.parametrize("format", ["npy", "safetensors", "parquet"])
def test_every_format_holds_the_same_numbers(photos, tmp_path, format):
    options = {"kind": "image", "part_size": 7}
    run(photos, tmp_path / "npy", pooling="cls", **options)
    expected = read_features(tmp_path / "npy").array()
    run(photos, tmp_path / format / "out", pooling="cls,mean", format=format, **options)
    np.testing.assert_array_equal(read_features(tmp_path / format / "out").array("cls"), expected)
    half = tmp_path / "half"
    run(photos, half, pooling="cls", format=format, dtype="float16", **options)
    assert read_features(half).array().dtype == np.float16
    np.testing.assert_array_equal(read_features(half).array(), expected.astype(np.float16))


def test_turned_and_large_images_are_taken_as_they_were_found(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (90, 70, 3), np.uint8)
    exif = Image.Exif()
    exif[0x0112] = 6
    folder = tmp_path / "in"
    folder.mkdir()
    Image.fromarray(pixels).save(folder / "a.png", exif=exif)
    Image.fromarray(np.rot90(pixels, -1)).save(folder / "b.png")
    run(folder, tmp_path / "out")
    first, second = read_features(tmp_path / "out").array()
    np.testing.assert_array_equal(first, second)
    expected = RUN.encode(images=[folder / "b.png"]).image_mean
    np.testing.assert_allclose(second[None], np.asarray(expected), atol=1e-6)


def test_wrong_input_is_refused_and_leaves_nothing(photos, tmp_path):
    only_images = trained_run(with_source("image"))
    (tmp_path / "lines.txt").write_text("a text")
    for model, given, options, message in [
        (only_images, photos, {"kind": "text"}, r"--kind = text, but the model has learned images"),
        (only_images, photos, {"kind": "both"}, r"images only, or was imported without"),
        (only_images, tmp_path / "lines.txt", {}, "holds no images"),
        (RUN, photos, {"layers": "3"}, r"names layer 3, and the encoder has the layers 1 to 2"),
        (RUN, photos, {"kind": "image", "pooling": "text_mean"}, "asks for text_mean"),
    ]:
        with pytest.raises(UserError, match=message):
            run(given, tmp_path / "out", model=model, **options)
        assert not (tmp_path / "out").exists()
    with pytest.raises(UserError, match=r"lies in --input"):
        run(photos, photos / "out")


def test_a_folder_of_something_else_is_not_touched(photos, tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(UserError, match="is there already, and not a folder of"):
        run(photos, tmp_path)
    assert contents(tmp_path) == {"notes.txt": b"mine"}


def test_an_input_of_broken_files_is_refused(tmp_path):
    folder = tmp_path / "in"
    folder.mkdir()
    (folder / "a.jpg").write_bytes(b"<html>gone</html>")
    with pytest.raises(UserError, match=r"no example of kind image .* HTML is not read \(1\)"):
        run(folder, tmp_path / "out", kind="image")
    assert not (tmp_path / "out").exists()


def test_damaged_features_are_named(photos, tmp_path):
    run(photos, tmp_path, kind="image")
    part = tmp_path / "part-00000.npy"
    whole = part.read_bytes()
    for damaged in (whole[:-50], b"", whole.replace(b"descr", b"de\0cr")):
        part.write_bytes(damaged)
        with pytest.raises(UserError, match=r"part-00000\.npy is missing or damaged"):
            read_features(tmp_path).array()
    with pytest.raises(UserError, match="holds the features image_mean, not cls"):
        read_features(tmp_path).array("cls")
    (tmp_path / "manifest.json").write_text('{"format": "other"}')
    with pytest.raises(UserError, match="is not of features"):
        read_features(tmp_path)
