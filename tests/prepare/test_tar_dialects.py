"""Guards what tar can store beyond plain files: links, sparse files, notes, devices."""

import tarfile
from pathlib import Path

import pytest
from tar_files import JPEG, content_of, header, pack, read

from m3ae_tpu.prepare.readers.archives import read_tar


def test_links_stand_for_the_file_that_they_name(tmp_path):
    url = pack(
        tmp_path / "a.tar",
        "data/a.jpg",
        "data/a.txt",
        header("b.jpg", tarfile.LNKTYPE, "./data/a.jpg"),
        "b.txt",
        header("links/c.jpg", tarfile.SYMTYPE, "../b.jpg"),
        "links/c.txt",
        header("d.jpg", tarfile.SYMTYPE, "late.jpg"),
        header("late.jpg", tarfile.SYMTYPE, "e.jpg"),
        "e.jpg",
        header("out.jpg", tarfile.SYMTYPE, "/etc/passwd"),
        header("loop.jpg", tarfile.SYMTYPE, "loop.jpg"),
        header("missing.jpg", tarfile.LNKTYPE, "nowhere.jpg"),
    )
    assert read(url) == [
        *(("data/a.jpg", "data/a.txt"), ("data/a.jpg", "b.txt"), ("data/a.jpg", "links/c.txt")),
        *(("e.jpg", None), ("e.jpg", None), ("e.jpg", None)),
        *["archive member is a link"] * 3,
    ]
    details = [sample.fault.detail for sample in read_tar(url) if sample.fault]
    assert details[0] == "out.jpg to /etc/passwd, which is not in the archive"


def test_what_is_not_a_file_is_passed_over(tmp_path):
    types = (tarfile.DIRTYPE, tarfile.FIFOTYPE, tarfile.CHRTYPE, tarfile.BLKTYPE, b"V", b"D")
    url = pack(tmp_path / "a.tar", *(header(f"no{type}.jpg", type) for type in types), "a.jpg")
    assert read(url) == [("a.jpg", None)]
    assert read(pack(tmp_path / "b.tar", header("folder", tarfile.DIRTYPE))) == [
        "archive without files"
    ]


def with_checksum(block):
    block[148:156] = b" " * 8
    block[148:156] = b"%06o\0 " % sum(block)
    return bytes(block)


def sparse_header(content, stretches, extended):
    """GNU's header of a sparse file: the first four stretches in it, the others behind."""
    numbers = [f"{number:011o}\0".encode() for stretch in stretches for number in stretch]
    block = bytearray(
        header("s.jpg", b"S", size=sum(n for _, n in stretches)).tobuf(tarfile.GNU_FORMAT)
    )
    block[386 : 386 + 96] = b"".join(numbers[:8]).ljust(96, b"\0")
    block[482] = extended
    block[483:495] = f"{len(content):011o}\0".encode()
    more = b"".join(numbers[8:]).ljust(504, b"\0") + bytes(8)
    return with_checksum(block) + (more if extended else b"")


def sparse_notes(version, content, stretches):
    """Pax notes of a sparse file, and the map that version 1.0 writes before the content."""
    numbers = [str(number) for stretch in stretches for number in stretch]
    size = str(len(content))
    if version == "1.0":
        table = "\n".join([str(len(stretches)), *numbers, ""]).encode()
        table += bytes(-len(table) % 512)
        notes = {"major": "1", "minor": "0", "name": "s.jpg", "realsize": size}
        return notes, table
    return {"map": ",".join(numbers), "name": "s.jpg", "size": size}, b""


@pytest.mark.parametrize("version", ["GNU", "GNU extended", "0.1", "1.0"])
def test_sparse_files_get_their_zeros_back(version, tmp_path):
    pieces = 7 if version == "GNU extended" else 3
    content = b"".join(JPEG + bytes([n]) * 700 + bytes(1024) for n in range(1, pieces + 1))
    stretches = [(n * 1727, 703) for n in range(pieces)]
    stored = b"".join(content[start : start + count] for start, count in stretches)
    if version.startswith("GNU"):
        data = sparse_header(content, stretches, version == "GNU extended") + stored
    else:
        notes, table = sparse_notes(version, content, stretches)
        member = header("GNUSparseFile.0/s.jpg", size=len(table) + len(stored))
        member.pax_headers = {f"GNU.sparse.{name}": value for name, value in notes.items()}
        data = member.tobuf(tarfile.PAX_FORMAT) + table + stored
    after = (tmp_path / "after.tar", "after.jpg")
    data += bytes(-len(data) % 512) + Path(pack(*after)).read_bytes()
    (tmp_path / "a.tar").write_bytes(data)
    first, second = read_tar(str(tmp_path / "a.tar"))
    assert (first.fault, first.image) == (None, content)
    assert second.image == content_of("after.jpg")


def test_notes_before_a_header_give_its_name_and_size(tmp_path):
    content = JPEG + bytes(1000)
    member = header("x", size=0)
    member.pax_headers = {"path": "caf\u00e9.jpg", "size": str(len(content)), "comment": "a=b\nc"}
    data = member.tobuf(tarfile.PAX_FORMAT) + content
    comment = tarfile.TarInfo.create_pax_global_header({"comment": "0" * 40, "path": "no.jpg"})
    data = comment + data + bytes(-len(data) % 512)
    (tmp_path / "a.tar").write_bytes(data + Path(pack(tmp_path / "b.tar", "a.txt")).read_bytes())
    first, second = read_tar(str(tmp_path / "a.tar"))
    assert (first.place, first.image) == (f"{tmp_path}/a.tar, caf\u00e9", content)
    assert second.captions == (b"a.txt",)


def test_times_in_the_headers_of_incremental_dumps_are_not_folders(tmp_path):
    blocks = []
    for number, name in enumerate(("a.jpg", "a.txt")):
        content = content_of(name)
        block = bytearray(header(name, size=len(content)).tobuf(tarfile.GNU_FORMAT))
        block[345:357] = b"1473421377%d\0" % number
        blocks.append(with_checksum(block) + content.ljust(512, b"\0"))
    (tmp_path / "a.tar").write_bytes(b"".join(blocks) + bytes(1024))
    assert read(tmp_path / "a.tar") == [("a.jpg", "a.txt")]


def test_numbers_may_be_bytes_and_checksums_those_of_signed_bytes(tmp_path):
    content = content_of("\u00e9.jpg")
    block = bytearray(header("\u00e9.jpg").tobuf(tarfile.GNU_FORMAT))
    block[124:136] = b"\x80" + len(content).to_bytes(11)
    unsigned = int(with_checksum(block)[148:154], 8)
    block[148:154] = b"%06o" % (unsigned - 256 * sum(byte > 127 for byte in block))
    (tmp_path / "a.tar").write_bytes(bytes(block) + content.ljust(512, b"\0") + bytes(1024))
    assert read(tmp_path / "a.tar") == [("\u00e9.jpg", None)]
    block[124:136] = b"-0000000010\0"
    (tmp_path / "a.tar").write_bytes(with_checksum(block) + bytes(1024))
    assert read(tmp_path / "a.tar") == ["damaged archive header"]
