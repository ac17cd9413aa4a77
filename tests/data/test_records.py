"""Guards the stored record: packing is reversible, and other bytes are refused."""

from typing import Any

import msgpack
import pytest

from m3ae_tpu.data.records import Record, decode_record, encode_record
from m3ae_tpu.errors import UserError

FULL = Record(
    id="a",
    image=b"\x00\xff",
    captions=("Ein Käfer.", "A bug."),
    label_name="animals",
    title="bug",
    group="g1",
    source="s",
    creator="c",
    license="l",
)


def packed(value: Any) -> bytes:
    return msgpack.Packer().pack(value)


@pytest.mark.parametrize("record", [FULL, Record(id="b"), Record(id="c", captions=("",))])
def test_a_record_survives_packing(record):
    assert decode_record(encode_record(record)) == record


def test_fields_that_say_nothing_are_left_out():
    assert msgpack.unpackb(encode_record(Record(id="b", title="bug"))) == {
        "version": 1,
        "id": "b",
        "title": "bug",
    }


def test_another_version_is_refused():
    with pytest.raises(
        UserError, match=r"record a has version = 2, this program reads 1\. Make the shards again"
    ):
        decode_record(packed({"version": 2, "id": "a"}))


def test_a_field_of_later_tools_is_ignored():
    assert decode_record(packed({"version": 1, "id": "a", "mood": "good"})) == Record(id="a")


@pytest.mark.parametrize("data", [b"", b"\xc1", b"hello", packed([1]), packed({"version": 1})])
def test_bytes_that_are_not_a_record_are_refused(data):
    with pytest.raises(ValueError, match="not a record"):
        decode_record(data)
