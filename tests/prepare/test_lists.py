"""Guards lists of images: every layout that people have, names that differ, broken rows."""

import json
import os
import unicodedata

import pytest
from odd_folders import dropped, image, images, parquet, prepare, write_files
from prepare_forms import run

from m3ae_tpu.errors import UserError
from m3ae_tpu.prepare.named_files import find_named_file

_ROWS = ('{"file_name": "0.jpg", "text": "a cat"}', '{"file_name": "1.jpg", "text": "a dog"}')
_COCO = {
    "images": [{"id": number, "file_name": f"{number}.jpg"} for number in (0, 1)],
    "annotations": [
        {"image_id": number, "caption": f"{which} of {number}"}
        for number in (0, 1)
        for which in ("first", "second")
    ],
}
_KARPATHY = {
    "images": [
        {"filename": f"{number}.jpg", "sentences": [{"raw": f"{which} of {number}"}]}
        for number, which in ((0, "first"), (1, "second"))
    ]
}


def captions(records):
    return {record.captions for record in records}


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("open_clip.tsv", "filepath\ttitle\n0.jpg\ta cat\n1.jpg\ta dog\n"),
        ("flickr30k.csv", "image_name| number| comment\n0.jpg| 0| a cat\n1.jpg| 0| a dog\n"),
        ("excel.csv", "file,caption\n0.jpg,a cat\n1.jpg,a dog\n".encode("utf-16")),
        ("excel.csv", "\ufeffsep=;\r\nFile;Caption\r\n0.jpg;a cat\r\n1.jpg;a dog\r\n"),
        ("old_mac.csv", "file,caption\r0.jpg,a cat\r1.jpg,a dog\r"),
        ("pandas.csv", ",file,caption\n0,0.jpg,a cat\n1,1.jpg,a dog\n"),
        ("pandas.json", '{"file":{"0":"0.jpg","1":"1.jpg"},"caption":{"0":"a cat","1":"a dog"}}'),
        ("columns.json", '{"file": ["0.jpg", "1.jpg"],\n "caption": ["a cat", "a dog"]}'),
        ("array.json", f"[{_ROWS[0]}, {_ROWS[1]}]"),
        ("one_array.json", f'{{"data": [{_ROWS[0]},\n{_ROWS[1]}]}}'),
        ("by_name.json", '{"0.jpg": "a cat", "1.jpg": ["a dog"]}'),
        ("metadata.jsonl", "\n".join(_ROWS)),
        ("metadata.parquet", parquet({"file": ["0.jpg", "1.jpg"], "text": ["a cat", "a dog"]})),
        ("spaces.csv", 'file, caption\n0.jpg, a cat \n1.jpg, "a dog"\n'),
        ("more.csv", "file,caption\n0.jpg,a cat,\n1.jpg,a dog,,\n"),
        ("twice.csv", "file,caption,caption\n0.jpg,a cat,\n1.jpg,a dog,no\n"),
    ],
    ids=lambda value: value if isinstance(value, str) and value.count(".") == 1 else "",
)  # fmt: skip
def test_lists_are_read_in_every_layout(name, content, tmp_path):
    manifest, records, _ = prepare(tmp_path, {**images(), name: content})
    assert (manifest["given"], captions(records)) == (2, {("a cat",), ("a dog",)})


@pytest.mark.parametrize(
    ("document", "expected"),
    [
        (_COCO, {("first of 0", "second of 0"), ("first of 1", "second of 1")}),
        (_KARPATHY, {("first of 0",), ("second of 1",)}),
    ],
    ids=["COCO", "Karpathy"],
)
def test_captions_of_an_image_come_together_from_a_json_document(document, expected, tmp_path):
    boxes = {"images": _COCO["images"], "annotations": [{"image_id": 0, "bbox": [0, 0, 1, 1]}]}
    files = {
        **images("train2017/"),
        "annotations/captions.json": json.dumps(document),
        "annotations/instances.json": json.dumps(boxes),
    }
    manifest, records, passed_over = prepare(tmp_path, files)
    assert (manifest["given"], captions(records)) == (2, expected)
    assert list(passed_over.values()) == [["annotations/instances.json"]]


@pytest.mark.parametrize(
    ("listed", "stored"),
    [
        (unicodedata.normalize("NFC", "café.jpg"), unicodedata.normalize("NFD", "café.jpg")),
        (unicodedata.normalize("NFD", "café.jpg"), unicodedata.normalize("NFC", "café.jpg")),
        ("sub\\a.jpg", "sub/a.jpg"),
        (" a.jpg ", "a.jpg"),
        ("./a.jpg", "a.jpg"),
        ("a%20b.jpg", "a b.jpg"),
        ("a", "a.jpg"),
        ("A.JPG", "a.jpg"),
        ("a.jpg#2", "a.jpg"),
        ("a.jpg", "Images/a.jpg"),
        ("b/a.jpg", "Images/b/a.jpg"),
        ("/elsewhere/given/b/a.jpg", "b/a.jpg"),
    ],
)
def test_names_of_a_list_are_found_as_other_systems_write_them(listed, stored, tmp_path):
    files = {stored: image(0), "list.jsonl": json.dumps({"file": listed, "caption": "found"})}
    manifest, records, passed_over = prepare(tmp_path, files)
    assert (captions(records), manifest["dropped"], passed_over) == ({("found",)}, {}, {})


def test_the_home_folder_may_stand_in_a_list(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(write_files(tmp_path / "home", {"a.jpg": image(0)})))
    assert find_named_file("~/a.jpg", str(tmp_path), str(tmp_path)) == f"{tmp_path}/home/a.jpg"


def test_a_name_is_never_taken_for_that_of_another_file(tmp_path):
    files = {
        "new/1.jpg": image(1),
        "a/2.jpg": image(2),
        "b/2.jpg": image(3),
        "0.jpg": image(0),
        "list.csv": "file,caption\nold/1.jpg,one\n2.jpg,two\n0.jpg,zero\nnone/0.jpg,none\n",
    }
    manifest, records, _ = prepare(tmp_path, files)
    assert (manifest["given"], captions(records)) == (4, {("zero",)})
    assert [(line["reason"], line["detail"]) for line in dropped(tmp_path)] == [
        ("unreadable image file", "No such file or directory: 'old/1.jpg'"),
        ("unreadable image file", "'2.jpg' names several files: a/2.jpg, b/2.jpg"),
        ("unreadable image file", "No such file or directory: 'none/0.jpg'"),
    ]


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        ("a.csv", "name,words\n0.jpg,a cat\n", "no column is named .* but name, words"),
        ("a.csv", "file,words\n0.jpg,a cat\n", "no column is named captions, .* but file, words"),
        ("a.csv", "0.jpg,a cat\n1.jpg,a dog\n", "a list without column names: add a first line"),
        ("a.txt", "0.jpg#0\ta cat\n1.jpg#0\ta dog\n", "a list without column names"),
        ("a.json", '{"info": 1}', "JSON that is not a list: write JSON lines"),
        ("a.csv", "file,caption\nx.jpg,a cat\n", "no file that it names is there: 'x.jpg'"),
        ("a.md", "A text about images.\n", "text that names no images"),
    ],
)
def test_a_list_that_is_not_understood_is_named_with_the_reason(name, content, reason, tmp_path):
    given = write_files(tmp_path / "given", {**images(), name: content})
    with pytest.raises(UserError, match=rf"no text \(2\)\.\npassed over 1 file: {name} \({reason}"):
        run(given, tmp_path / "set")


@pytest.mark.parametrize("quoted", ['"a ""red"" cat, sitting"', r'"a \"red\" cat, sitting"'])
def test_quotes_are_doubled_or_escaped(quoted, tmp_path):
    files = {**images(), "a.csv": f"file,caption\n0.jpg,{quoted}\n1.jpg,b\n"}
    assert captions(prepare(tmp_path, files)[1]) == {('a "red" cat, sitting',), ("b",)}


def test_half_a_caption_is_not_kept(tmp_path):
    rows = ["file\tcaption", "0.jpg\ttwo", "lines", '1.jpg\t"two', 'lines"', '2.jpg\t"a quote']
    manifest, records, _ = prepare(tmp_path, {**images(count=3), "a.tsv": "\n".join(rows)})
    assert captions(records) == {("two\nlines",), ('"a quote',)}
    assert manifest["dropped"] == {"row broken over several lines": 1}
    assert dropped(tmp_path)[0]["detail"] == "0.jpg\ttwo"


def test_a_list_beside_archives_names_its_images_and_a_list_of_addresses_none(tmp_path):
    files = {
        **images("x/"),
        "x/list.csv": "file,caption\n0.jpg,a cat\n",
        "rows.parquet": parquet({"image": [image(5)], "text": ["from rows"]}),
        "urls.parquet": parquet({"url": ["https://example.org/a.jpg"], "caption": ["no"]}),
        "vectors.parquet": parquet({"id": [1], "vector": [[0.5]]}),
    }
    manifest, records, passed_over = prepare(tmp_path, files)
    assert (manifest["given"], captions(records)) == (2, {("a cat",), ("from rows",)})
    assert passed_over == {
        "holds addresses of images, not images": ["urls.parquet"],
        "no column is named file, file_name, filename, filepath or the like, but id, vector": [
            "vectors.parquet"
        ],
        "no list names it": ["x/1.jpg"],
    }


def test_classes_come_from_the_list_or_else_from_the_folder(tmp_path):
    files = {**images("train/"), "train.csv": "id,label\n0,cat\n1,\n"}
    manifest, records, _ = prepare(tmp_path / "column", files, kind="labelled")
    assert ([record.label_name for record in records], manifest["classes"]) == (["cat"], {"cat": 1})
    files = {**images("cat/"), "dog/2.jpg": image(2), "list.csv": "file\ncat/0.jpg\ndog/2.jpg\n"}
    manifest, _, _ = prepare(tmp_path / "folder", files, kind="labelled")
    assert manifest["classes"] == {"cat": 1, "dog": 1}
    # The classes stand in a column of another name: the folder is not taken for the class of all.
    files = {**images("train/"), "train.csv": "id,breed\n0,cat\n1,dog\n"}
    _, _, passed_over = prepare(tmp_path / "unknown", files, kind="labelled")
    assert list(passed_over) == [
        "no column is named label_name, label, class, cls or the like, but breed, id"
    ]


def test_numbers_of_classes_get_the_names_that_a_parquet_file_has_for_them(tmp_path):
    features = {"label": {"names": ["cat", "dog"], "_type": "ClassLabel"}}
    metadata = {"huggingface": json.dumps({"info": {"features": features}})}
    files = {
        "a.parquet": parquet({"image": [image(0), image(1)], "label": [1, 0]}, metadata),
        "b.parquet": parquet({"image": [image(2)], "label": [3.0]}),
    }
    manifest, _, _ = prepare(tmp_path, files, kind="labelled")
    assert manifest["classes"] == {"3": 1, "cat": 1, "dog": 1}


def test_rows_are_numbered_from_one_in_every_format(tmp_path):
    table = {"image": [b"", b""], "text": ["a", "b"]}
    files = {**images(), "a.parquet": parquet(table), "b.csv": "file,caption\n0.jpg,\n1.jpg,\n"}
    given = write_files(tmp_path / "given", {**files, "c.csv": "file,caption\n0.jpg,kept\n"})
    run(given, tmp_path / "set", num_shards=1)
    places = [os.path.basename(line["place"]) for line in dropped(tmp_path)]
    assert places == [f"{name}, row {row}" for name in ("a.parquet", "b.csv") for row in (1, 2)]
