"""Guards the choice of files in a folder: what lies beside the data does not become data."""

import contextlib
import gzip
import os

import pytest
from odd_folders import image, images, parquet, prepare, write_files
from prepare_forms import run

from m3ae_tpu.errors import UserError
from m3ae_tpu.prepare.helper_files import helper_file_reason
from m3ae_tpu.prepare.inputs import list_files
from m3ae_tpu.prepare.pieces import find_pieces


def texts(records):
    return sorted(record.captions[0] for record in records)


def test_a_downloaded_repository_gives_its_rows_alone(tmp_path):
    files = {
        "data/train-0.parquet": parquet({"text": ["one", "two"]}),
        "data/train-1.parquet": "version https://git-lfs.github.com/spec/v1\nsize 9\n",
        "README.md": "---\nlicense: mit\n---\n# Dataset card\n",
        "LICENSE": "MIT",
        "requirements.txt": "numpy\n",
        "load.py": "print(1)\n",
        "train.log": "step 1\n",
        "dataset_infos.json": '{"default": {"features": {}}}',
    }
    manifest, records, passed_over = prepare(tmp_path, files, kind="text")
    assert texts(records) == ["one", "two"]
    assert manifest["dropped"] == {"not fetched from Git LFS": 1}
    assert passed_over == {
        "document about the data": [
            *("LICENSE", "README.md", "dataset_infos.json", "requirements.txt")
        ],
        "program, settings or log": ["load.py", "train.log"],
    }


def test_a_document_is_read_if_it_is_named(tmp_path):
    given = write_files(tmp_path / "given", {"README.md": "# One\n\ntwo\n"})
    with pytest.raises(UserError, match=r"holds no text to read.* name that file"):
        run(given, tmp_path / "set", kind="text")
    assert run(given / "README.md", tmp_path / "set", kind="text", num_shards=1)["kept"] == 2


def test_files_of_spark_are_not_data(tmp_path):
    files = {
        "part-0.parquet": parquet({"text": ["one"]}),
        "part-1.csv": "text,id\ntwo,1\n",
        "part-2.txt.gz": gzip.compress(b"three\n"),
        "_metadata": parquet({"text": ["no"]}),
        "_SUCCESS": "",
        "_committed_123": "{}",
        ".part-0.parquet.crc": "crc",
        "part-0.parquet.crc": "crc",
        "_temporary/0/part-1.csv": "text\nno\n",
    }
    manifest, records, passed_over = prepare(tmp_path, files, kind="text")
    assert (manifest["given"], texts(records)) == (3, ["one", "three", "two"])
    assert [len(names) for names in passed_over.values()] == [5]


@pytest.mark.parametrize(
    "name", ["notice-board.jpg", "license_plates.csv", "_MG_1234.JPG", "read.txt", "data/0.txt"]
)
def test_data_that_are_named_like_helpers_stay_data(name):
    assert helper_file_reason(name) == ""


def test_files_of_systems_are_not_images(tmp_path):
    files = {
        **images(),
        "_MG_2.JPG": image(2),
        "Thumbs.db": b"\xd0\xcf\x11\xe0" + bytes(60),
        "desktop.ini": "[.ShellClassInfo]",
        "__MACOSX/0.jpg": b"\0\5\x16\7" + bytes(60),
        "notes.yaml": "a: 1",
    }
    manifest, _, passed_over = prepare(tmp_path, files, kind="image")
    assert (manifest["given"], manifest["kept"]) == (3, 3)
    assert sum(map(len, passed_over.values())) == 4


def test_what_img2dataset_leaves_in_folders_is_read(tmp_path):
    files = {
        **images("00000/"),
        "00000/0.txt": "zero",
        "00000/0.json": '{"caption": "not this"}',
        "00000/1.json": '{"caption": "one", "url": "http://example.org"}',
        "00000.parquet": parquet({"url": ["http://x/y.jpg"], "caption": ["no"]}),
        "00000_stats.json": '{\n "count": 2\n}',
    }
    manifest, records, _ = prepare(tmp_path, files)
    assert (manifest["given"], texts(records)) == (2, ["one", "zero"])


@pytest.mark.parametrize("name", ["0.jpg.txt", "0.caption", "0.TXT", "0.json", "0.jpg.json"])
def test_the_text_beside_an_image_has_many_names(name, tmp_path):
    content = '{"caption": "beside"}' if name.endswith("json") else "beside"
    _, records, passed_over = prepare(tmp_path, {"0.jpg": image(0), name: content})
    assert (texts(records), passed_over) == (["beside"], {})


def test_the_name_of_an_image_is_not_its_caption(tmp_path):
    files = {
        "0.jpg": image(0),
        "0.jpg.json": '{"title": "0.jpg", "description": "", "url": "https://example.org"}',
        "1.jpg": image(1),
        "1.jpg.json": '{"title": "1.jpg", "description": "written by hand"}',
    }
    manifest, records, _ = prepare(tmp_path, files)
    assert (texts(records), manifest["dropped"]) == (["written by hand"], {"empty text": 1})


def test_first_lines_that_look_like_columns_or_json_begin_texts(tmp_path):
    books = [
        "{{Short description|A town}}\nThe town is old.\nIt has a river.\n",
        "File, class\nThis book, as others, begins.\nIt has chapters.\n",
        "Label\nIt begins.\n",
        "Image, text and sound\nBoth, and more, of it.\n",
        "Title, text\nOnce upon, a time, there was.\nAnd then.\n",
        "Text\nIt begins.\n",
        "[1] J. Smith, 1999.\n[2] A. Jones.\n",
    ]
    files = {f"{number}.txt": book for number, book in enumerate(books)}
    manifest, records, _ = prepare(tmp_path, files, kind="text")
    assert texts(records) == sorted(line for book in books for line in book.splitlines())
    assert manifest["dropped"] == {}


def test_columns_that_texts_do_not_need_cost_nothing(tmp_path):
    files = {
        "a.jsonl": '{"text": "one", "path": "src/a.py"}\n{"text": "two", "image": "http://a/b"}\n',
        "b.parquet": parquet({"text": ["three"], "file": ["gone.jpg"], "label": [3]}),
        "c.csv": "id,url,title,text\n1,http://a,Four,four\n",
    }
    _, records, _ = prepare(tmp_path, files, kind="text")
    assert texts(records) == ["four", "one", "three", "two"]


def test_a_table_without_texts_is_not_read_line_by_line(tmp_path):
    files = {"a.csv": "id,body\n1,x\n2,y\n", "b.txt": "one\n"}
    _, records, passed_over = prepare(tmp_path, files, kind="text")
    assert (texts(records), list(passed_over.values())) == (["one"], [["a.csv"]])


@pytest.mark.parametrize(
    "content",
    ['[{"text": "one"},{"text": "two"}]', '[\n  {"text": "one"},\n  "two"\n]', '["one", "two"]'],
)
def test_texts_may_stand_in_a_json_array(content, tmp_path):
    assert texts(prepare(tmp_path, {"a.json": content}, kind="text")[1]) == ["one", "two"]


def test_every_link_to_a_folder_is_followed_but_not_in_circles(tmp_path):
    given = write_files(tmp_path / "given", {"real/0.jpg": image(0)})
    for name in ("first", "second"):
        (given / name).symlink_to(given / "real")
    (given / "real" / "circle").symlink_to(given)
    (given / "dangling.jpg").symlink_to(given / "nowhere")
    (given / "itself.jpg").symlink_to(given / "itself.jpg")
    os.mkfifo(given / "pipe.jpg")
    (given / "to_pipe.jpg").symlink_to(given / "pipe.jpg")
    found = [os.path.relpath(path, given) for path in list_files(str(given))]
    links = ["dangling.jpg", "itself.jpg"]
    assert found == sorted([*links, "first/0.jpg", "real/0.jpg", "second/0.jpg"])


@contextlib.contextmanager
def ordinary_user(*folders):
    """Lets permissions count although the tests may run as root, which they do not bind."""
    for folder in folders:
        folder.chmod(0o777)
    if os.getuid() == 0:
        os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(os.getuid())


def test_an_unreadable_folder_is_refused_and_an_unreadable_file_counted(tmp_path):
    given = write_files(tmp_path / "given", {**images(), "folder/2.jpg": image(2)})
    (given / "0.jpg").chmod(0)
    (given / "folder").chmod(0)
    above = [path for path in (tmp_path, *tmp_path.parents) if path.stat().st_uid == os.getuid()]
    above = [path for path in above if "pytest" in str(path)]
    with (
        ordinary_user(*above),
        pytest.raises(UserError, match=r"given/folder, which cannot be read \(Permission denied\)"),
    ):
        list_files(str(given))
    (given / "folder").chmod(0o755)
    with ordinary_user(*above):
        manifest = run(given, tmp_path / "set", kind="image", num_shards=1)
    assert (manifest["kept"], manifest["dropped"]) == (2, {"unreadable image file": 1})


def test_globs_are_filled_in(tmp_path):
    given = write_files(tmp_path, {"a.txt": "one", "b.txt": "two", "c.csv": "x"})
    pieces = find_pieces([f"{given}/*.txt"], "text").pieces
    assert [piece.urls for piece in pieces] == [(f"{given}/a.txt",), (f"{given}/b.txt",)]
