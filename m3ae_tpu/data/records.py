"""The stored record and its codec: one form for pairs, images, texts and labelled examples.

A record is a msgpack map. Empty fields are left out:

| field | type | meaning |
| --- | --- | --- |
| `version` | int | 1; a reader refuses any other |
| `id` | str | unique within a set |
| `image` | bytes | an encoded image: JPEG, WebP, PNG, ... |
| `captions` | list of str | captions of the image, the main one first; or the text of a text |
| `label_name` | str | class, for probes and evaluation only |
| `title` | str | short name of what is shown; equal titles count as equal in retrieval |
| `group` | str | near-duplicate group; lies in one split only |
| `source`, `creator`, `license` | str | where the example comes from, who made it, its terms |

Pre-training reads `id`, `image` and `captions` only.
"""

import dataclasses
from typing import Any

import msgpack

from m3ae_tpu.errors import require

VERSION = 1


@dataclasses.dataclass(frozen=True, kw_only=True)
class Record:
    """An example as it is stored; see the table above."""

    id: str
    image: bytes = b""
    captions: tuple[str, ...] = ()
    label_name: str = ""
    title: str = ""
    group: str = ""
    source: str = ""
    creator: str = ""
    license: str = ""


_FIELDS = tuple(field.name for field in dataclasses.fields(Record))


def encode_record(record: Record) -> bytes:
    """Packs a record; equal records give equal bytes."""
    # The map's order is that of the class: equal records give equal bytes.
    fields = {name: value for name, value in vars(record).items() if value}
    return msgpack.Packer().pack({"version": VERSION, **fields})


def decode_record(data: bytes) -> Record:
    """Unpacks a record. Fields unknown to this version's table are ignored.

    Raises:
        UserError: the record has another version.
        ValueError: the bytes do not hold a record; `UnicodeDecodeError` if a text is not UTF-8.
    """
    try:
        fields: dict[str, Any] = msgpack.unpackb(data)
    except UnicodeDecodeError:
        raise
    except ValueError as error:
        raise ValueError(f"not a record: {type(error).__name__} {error}") from error
    if not isinstance(fields, dict) or not isinstance(fields.get("id"), str):
        raise ValueError("not a record: no msgpack map with an `id`")
    version = fields.get("version")
    require(
        version == VERSION,
        f"record {fields['id']} has version = {version}, this program reads {VERSION}. "
        "Make the shards again with this version's tools, or use the version that wrote them.",
    )
    stored = {name: fields[name] for name in _FIELDS if name in fields}
    for name, value in stored.items():
        if not _has_its_type(name, value):
            raise ValueError(f"not a record: {name} is of type {type(value).__name__}")
    stored["captions"] = tuple(stored.get("captions", ()))
    return Record(**stored)


def _has_its_type(name: str, value: Any) -> bool:
    if name == "captions":
        return isinstance(value, list) and all(isinstance(text, str) for text in value)
    return isinstance(value, bytes if name == "image" else str)
