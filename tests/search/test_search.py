"""Guards search: neighbours by standardised features, texts beside images, and the page."""

import io

import numpy as np
import pytest
from PIL import Image
from small_run import save_run, trained_run, with_source

from m3ae_tpu.data.records import Record
from m3ae_tpu.data.shards import write_shard
from m3ae_tpu.errors import UserError
from m3ae_tpu.features.extract import extract_features
from m3ae_tpu.features.options import FeatureOptions
from m3ae_tpu.features.reading import read_features
from m3ae_tpu.prepare.convert import STORED
from m3ae_tpu.search.caption_likelihood import CaptionScorer
from m3ae_tpu.search.command import search_and_show
from m3ae_tpu.search.neighbours import Neighbours, best
from m3ae_tpu.search.search import Query, search

RUN = trained_run()
PIXELS = np.random.default_rng(0).integers(0, 256, (6, 32, 32, 3), np.uint8)
TEXTS = ["a red house", "two dogs", "a blue car", "a tree", "the sea", "a cat"]


def as_png(pixels):
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    folder = tmp_path_factory.mktemp("photos") / "in"
    for number, pixels in enumerate(PIXELS):
        of_class = folder / f"class{number % 2}"
        of_class.mkdir(parents=True, exist_ok=True)
        (of_class / f"{number}.png").write_bytes(as_png(pixels))
        (of_class / f"{number}.txt").write_text(TEXTS[number])
    return folder


def extracted(given, output, **options):
    extract_features(RUN, [str(given)], output, FeatureOptions(**options))
    return read_features(output)


def found(features, query, *, count=3, rerank=100):
    return search(features, RUN, query, count=count, rerank=rerank)


def places(features, hits):
    return [features.index[hit.row]["place"][-5:] for hit in hits]


def test_neighbours_are_those_of_standardised_features():
    features = np.random.default_rng(0).normal(5, [1, 10, 0], (50, 3)).astype(np.float32)
    features[:, 2] = 7
    standardised = (features - features.mean(0)) / np.where(features.std(0) > 0, features.std(0), 1)
    expected = standardised @ standardised[3]
    expected /= np.linalg.norm(standardised, axis=1) * np.linalg.norm(standardised[3])
    np.testing.assert_allclose(Neighbours(features).cosines(features[3]), expected, atol=1e-5)
    np.testing.assert_array_equal(best(np.array([1, 3, 3, 2], np.float32), 3), [1, 2, 3])
    np.testing.assert_array_equal(Neighbours(features[:1]).cosines(features[0]), [0])


def test_an_image_finds_itself_first(photos, tmp_path):
    features = extracted(photos, tmp_path / "out", kind="image", part_size=4, layers="all")
    hits = found(features, Query(image=str(photos / "class1" / "3.png")))
    assert places(features, hits)[0] == "3.png"
    assert hits[0].cosine == pytest.approx(1, abs=1e-5)
    cosines = [hit.cosine or 0 for hit in hits]
    assert cosines == sorted(cosines, reverse=True)


def test_a_text_finds_itself_among_texts(tmp_path):
    (tmp_path / "lines.txt").write_text("\n".join(TEXTS))
    features = extracted(tmp_path / "lines.txt", tmp_path / "out")
    hits = found(features, Query(text="a tree"))
    assert (hits[0].row, hits[0].log_likelihood) == (3, None)
    assert hits[0].cosine == pytest.approx(1, abs=1e-5)
    with pytest.raises(UserError, match=r"is an image, and .* holds features of texts"):
        found(features, Query(image="a.png"))


@pytest.mark.parametrize("form", ["files", "shards"])
def test_a_text_orders_all_images_by_its_likelihood(photos, tmp_path, form):
    given = photos
    if form == "shards":
        records = [Record(id=str(n), image=as_png(pixels)) for n, pixels in enumerate(PIXELS)]
        given = tmp_path / "mine-00000-of-00001.array_record"
        write_shard(given, records, STORED)
    features = extracted(given, tmp_path / "out", kind="image", part_size=4)
    hits = found(features, Query(text="a tree"), count=6)
    order = [1, 3, 5] if form == "files" else range(6)
    order = [0, 2, 4, *order] if form == "files" else order
    expected = CaptionScorer(RUN)(PIXELS[list(order)], "a tree")
    assert [hit.row for hit in hits] == list(np.argsort(-expected))
    scores = [hit.log_likelihood or 0 for hit in hits]
    np.testing.assert_allclose(scores, -np.sort(-expected), atol=1e-5)
    assert all(hit.cosine is None for hit in hits)
    with pytest.raises(UserError, match="--rerank = 0 leaves nothing"):
        found(features, Query(text="a tree"), rerank=0)


def test_a_text_orders_the_nearest_images(photos, tmp_path):
    features = extracted(photos, tmp_path / "out", kind="image")
    image = str(photos / "class0" / "2.png")
    nearest = {hit.row for hit in found(features, Query(image=image), count=2)}
    hits = found(features, Query(image=image, text="a tree"), rerank=2, count=6)
    assert {hit.row for hit in hits} == nearest
    assert (hits[0].log_likelihood or 0) >= (hits[1].log_likelihood or 0)
    unordered = found(features, Query(image=image, text="a tree"), rerank=0, count=2)
    assert {hit.row for hit in unordered} == nearest


def test_an_image_with_its_text_finds_its_pair(photos, tmp_path):
    features = extracted(photos, tmp_path / "out", pooling="cls,text_mean")
    query = Query(image=str(photos / "class1" / "5.png"), text=TEXTS[5])
    hits = found(features, query, rerank=0)
    assert places(features, hits)[0] == "5.png"
    assert hits[0].cosine == pytest.approx(1, abs=1e-5)
    assert all(hit.log_likelihood is None for hit in hits)


def test_another_model_or_changed_files_are_refused(photos, tmp_path):
    features = extracted(photos, tmp_path / "out", kind="image")
    other = trained_run(with_source("image"))
    other.__dict__["digest"] = "0" * 64
    with pytest.raises(UserError, match="--model is not the one that made"):
        search(features, other, Query(text="a"), count=1, rerank=1)
    moved = tmp_path / "moved"
    photos_again = tmp_path / "again"
    photos_again.mkdir()
    for number in range(3):
        (photos_again / f"{number}.png").write_bytes(as_png(PIXELS[number]))
    features = extracted(photos_again, moved, kind="image")
    (photos_again / "1.png").unlink()
    with pytest.raises(UserError, match=r"is not what .* was made of"):
        found(features, Query(text="a tree"))


def test_the_page_shows_query_and_results_and_needs_no_other_file(photos, tmp_path, capsys):
    save_run(tmp_path / "run", RUN)
    output = tmp_path / "out"
    options = FeatureOptions(kind="both", pooling="image_mean")
    extract_features(RUN, [str(photos)], output, options, model_name=str(tmp_path / "run"))
    query = Query(image=str(photos / "class1" / "5.png"), text="a <cat>")
    search_and_show(output, query, model=None, count=3, rerank=4, output=None)
    page = (output / "search.html").read_text()
    assert page.count("data:image/jpeg;base64,") == 4
    assert "a &lt;cat&gt;" in page
    assert "<cat>" not in page
    assert "src=http" not in page
    assert "no space that images and texts share" in page
    printed = capsys.readouterr().out
    assert "class1" in printed
    assert "log-likelihood" in printed
    assert f"contact sheet: {output}/search.html" in printed
