"""Identity of shards by their content, told from a few reads of each.

A shard is known by its size, its number of records, its end and a few blocks. The end holds
ArrayRecord's index: the places of all records, or of the last ten thousand. A small shard is read
whole. One record of a large shard that was exchanged for another of exactly the same stored size
may be missed by this, but not by the SHA-256 in the `manifest.json` beside the shard. That counts
where both sides have one: sets are also copied without their manifest.
"""

import collections
import concurrent.futures
import hashlib
import os
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from m3ae_tpu.data.manifest import read_manifest
from m3ae_tpu.errors import UserError
from m3ae_tpu.storage.places import num_bytes, read_parts

_NUM_THREADS = 32
"""Shards read at once: where files are remote, most of the time is waiting."""
_WHOLE_BYTES = 2**20
"""Shards up to this size are read whole."""
_END_BYTES = 2**18
"""ArrayRecord's last block of 64 KiB, up to as much padding before it, and 128 KiB of the index."""
_BLOCK_BYTES, _NUM_BLOCKS = 2**16, 3
_NUM_DIGITS = 16


class ShardIdentity(NamedTuple):
    """Name, number of records and content of a shard; a list in JSON."""

    name: str
    """File name without its folder."""
    num_records: int
    content: str = ""
    """Digest of what was read; empty in checkpoints of earlier versions."""
    sha256: str = ""
    """First digits of the whole file's SHA-256 by the manifest; empty without one."""


def identify(paths: Sequence[str], counts: Sequence[int]) -> list[ShardIdentity]:
    """Returns the identity of each shard.

    Args:
        paths: The shards' files.
        counts: Number of records of each.
    """
    with concurrent.futures.ThreadPoolExecutor(_NUM_THREADS) as pool:
        contents = list(pool.map(_content_digest, paths, counts))
    return [
        ShardIdentity(os.path.basename(path), count, content, sha256)
        for path, count, content, sha256 in zip(
            paths, counts, contents, _manifest_digests(paths, counts), strict=True
        )
    ]


def changes(owner: str, now: Iterable[ShardIdentity], was: Iterable[ShardIdentity]) -> list[str]:
    """Returns a phrase for each shard that is not what it was; shards may move to another folder.

    Args:
        owner: Name of the set in a phrase.
        now: The set's shards, in order.
        was: Those of the same set before.
    """
    now_by_name, was_by_name = _by_name(now), _by_name(was)
    phrases = []
    for name in dict.fromkeys([*now_by_name, *was_by_name]):
        new, old = now_by_name.get(name), was_by_name.get(name)
        num_new, num_old = (side.num_records if side else "nothing" for side in (new, old))
        if num_new != num_old:
            phrases.append(f"records of {owner}'s {name} = {num_new} now, was {num_old}")
        elif new and old and not _is_same_content(new, old):
            phrases.append(f"the content of {owner}'s {name} changed")
    if not phrases and list(now_by_name) != list(was_by_name):
        phrases.append(f"{owner}'s shards come in another order")
    return phrases


def _by_name(shards: Iterable[ShardIdentity]) -> dict[str, ShardIdentity]:
    """Returns shards by name, with a number where several folders have a shard of that name."""
    seen, found = collections.Counter[str](), {}
    for shard in shards:
        seen[shard.name] += 1
        number = f" ({seen[shard.name]})" if seen[shard.name] > 1 else ""
        found[shard.name + number] = shard
    return found


def _is_same_content(now: ShardIdentity, was: ShardIdentity) -> bool:
    has_sha256 = bool(now.sha256 and was.sha256)
    return now.content == was.content and (not has_sha256 or now.sha256 == was.sha256)


def _content_digest(path: str, num_records: int) -> str:
    """Returns a digest of size, number of records, end and some blocks of a shard."""
    size = num_bytes(path)
    parts = [(0, size)]
    if size > _WHOLE_BYTES:
        end = size - _END_BYTES
        starts = (number * end // _NUM_BLOCKS for number in range(_NUM_BLOCKS))
        parts = [(end, _END_BYTES), *((start, _BLOCK_BYTES) for start in starts)]
    digest = hashlib.sha256(f"{size} {num_records} ".encode())
    digest.update(read_parts(path, parts))
    return digest.hexdigest()[:_NUM_DIGITS]


def _manifest_digests(paths: Sequence[str], counts: Sequence[int]) -> list[str]:
    """Returns the SHA-256 of each shard by the manifest beside it, or "" where none fits."""
    lines = {}
    for folder in dict.fromkeys(map(os.path.dirname, paths)):
        try:
            lines[folder] = read_manifest(folder or os.curdir)["shards"]
        except UserError:  # A set needs no manifest to be trained on.
            lines[folder] = {}
    return [
        _fitting_sha256(lines[os.path.dirname(path)].get(os.path.basename(path)), path, count)
        for path, count in zip(paths, counts, strict=True)
    ]


def _fitting_sha256(line: object, path: str, num_records: int) -> str:
    """Returns the SHA-256 in a shard's line of the manifest if the line is about this file."""
    if not isinstance(line, dict):
        return ""
    size = num_bytes(path)
    fits = line.get("records") == num_records and line.get("bytes", size) == size
    return str(line.get("sha256", ""))[:_NUM_DIGITS] if fits else ""
