"""Guards the examples of an input: every form is read in order, what is broken is named."""

import pytest
from small_inputs import CAPTIONS, as_png, write_photos

from m3ae_tpu.data.records import Record
from m3ae_tpu.data.shards import write_shard
from m3ae_tpu.errors import UserError
from m3ae_tpu.features.examples import Place, choose_input, open_input
from m3ae_tpu.prepare.convert import STORED

KINDS = ("both", "image", "text")


def examples(given, kind):
    return [example for _, example in open_input([str(given)], kind).read()]


def test_a_folder_of_classes_gives_labelled_images(tmp_path):
    found = examples(write_photos(tmp_path / "photos"), "image")
    assert [example.label for example in found] == ["cats"] * 10 + ["dogs"] * 10
    assert found[0].image == as_png(1)
    assert len({example.id for example in found}) == 20


def test_a_flat_folder_has_no_classes(tmp_path):
    (tmp_path / "a.png").write_bytes(as_png(0))
    assert [example.label for example in examples(tmp_path, "image")] == [""]


def test_lines_are_texts(tmp_path):
    (tmp_path / "lines.txt").write_text("one\n\ntwo words\n")
    assert [example.text for example in examples(tmp_path / "lines.txt", "text")] == [
        "one",
        "two words",
    ]


def test_a_list_names_images_and_captions(tmp_path):
    (tmp_path / "a.png").write_bytes(as_png(0))
    (tmp_path / "list.csv").write_text("file,caption,label\na.png,a house,x\nb.png,gone,y\n")
    first, second = examples(tmp_path, "both")
    assert (first.image, first.text, first.label) == (as_png(0), "a house", "x")
    assert second.fault is not None
    assert second.fault.reason == "unreadable image file"


def test_shards_are_read_in_their_order(tmp_path):
    records = [
        Record(id="b", image=as_png(0), captions=("one",), label_name="x"),
        Record(id="a", captions=("two",)),
    ]
    write_shard(tmp_path / "mine-00000-of-00001.array_record", records, STORED)
    for given in (tmp_path, tmp_path / "mine-*", tmp_path / "mine-00000-of-00001.array_record"):
        first, second = examples(given, "both")
        assert (first.id, first.text, first.label) == ("b", "one", "x")
        assert second.fault is not None
        assert second.fault.reason == "no image"
    assert [example.text for example in examples(tmp_path, "text")] == ["one", "two"]


def test_an_input_is_read_from_any_place(tmp_path):
    found = open_input([str(write_photos(tmp_path / "photos"))], "image")
    read = list(found.read())
    assert found.count == len(read) == 20
    for number in (0, 7, 19):
        assert list(found.read(read[number][0])) == read[number + 1 :]
    assert list(found.read(Place(1, 0))) == []


def test_the_richest_kind_that_the_input_has_is_chosen(tmp_path):
    photos = str(write_photos(tmp_path / "photos"))
    captioned = str(write_photos(tmp_path / "captioned", captions=True))
    (tmp_path / "lines.txt").write_text("\n".join(CAPTIONS))
    lines = str(tmp_path / "lines.txt")
    assert choose_input([photos], KINDS).kind == "image"
    assert choose_input([captioned], KINDS).kind == "both"
    assert choose_input([captioned], ("image",)).kind == "image"
    assert choose_input([lines], KINDS).kind == "text"
    assert choose_input(["starter/texts-*"], KINDS).kind == "text"
    with pytest.raises(UserError, match="holds no images"):
        choose_input([lines], ("image",))
    with pytest.raises(UserError, match=r"does not exist|cannot be read"):
        choose_input([str(tmp_path / "none")], KINDS)


def test_another_file_is_another_input(tmp_path):
    photos = write_photos(tmp_path / "photos")
    before = open_input([str(photos)], "image").digest
    assert open_input([str(photos)], "image").digest == before
    (photos / "cats" / "new.png").write_bytes(as_png(99))
    assert open_input([str(photos)], "image").digest != before


def test_another_text_beside_an_image_is_another_input(tmp_path):
    photos = write_photos(tmp_path / "photos", captions=True)
    digests = [open_input([str(photos)], "both").digest]
    for change in ("cats/01.txt", "cats/01.png.txt"):
        (photos / change).write_text("another text")
        digests.append(open_input([str(photos)], "both").digest)
    assert len(set(digests)) == 3
