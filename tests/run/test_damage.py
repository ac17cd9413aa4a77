"""Guards that no damage of the newest checkpoint is restored silently, whatever file it hits."""

import pathlib
import random
import shutil

import fake_gcs
import pytest
from small_state import RUN, abstract, assert_same, make_state

from m3ae_tpu.config import CheckpointConfig
from m3ae_tpu.run.checkpoint import Checkpointer, CheckpointReader
from m3ae_tpu.run.claim import claim_workdir, files_of

KINDS = ("flip", "shorten", "remove")
ADDRESS = "gs://bucket/run"


def damaged(content: bytes, kind: str, draw: random.Random) -> bytes | None:
    """Returns content after damage, None for a file that is gone."""
    if kind == "remove":
        return None
    place = draw.randrange(len(content))
    if kind == "shorten":
        return content[:place]
    return (
        content[:place] + bytes([content[place] ^ (1 << draw.randrange(8))]) + content[place + 1 :]
    )


class OnDisk:
    """A workdir on a disk, whose files are damaged and put back."""

    def __init__(self, folder: pathlib.Path):
        self.address, self._folder = str(folder / "run"), folder
        save(self.address)
        shutil.copytree(self.address, folder / "copy")

    def files(self):
        root = pathlib.Path(self.address)
        newest = root / "checkpoints" / "4"
        return {str(path.relative_to(root)): path for path in newest.rglob("*") if path.is_file()}

    def read(self, name):
        return (pathlib.Path(self.address) / name).read_bytes()

    def write(self, name, content):
        path = pathlib.Path(self.address) / name
        if content is None:
            path.unlink()
        else:
            path.write_bytes(content)


class InBucket:
    """A workdir in a bucket, whose objects are damaged and put back."""

    address = ADDRESS

    def __init__(self, folder: pathlib.Path):
        server = fake_gcs.shared_server()
        server.restart("bucket")
        self._objects = server.buckets["bucket"]
        save(self.address)

    def files(self):
        return [name for name in self._objects if name.startswith("run/checkpoints/4/")]

    def read(self, name):
        return self._objects[name][0]

    def write(self, name, content):
        if content is None:
            del self._objects[name]
        else:
            self._objects.put(name, content, {}, {})


def save(address):
    workdir = claim_workdir(address if address == ADDRESS else pathlib.Path(address))
    checkpointer = Checkpointer(
        workdir.path, CheckpointConfig(), before_commit=workdir.before_commit
    )
    for step in (2, 4):
        checkpointer.save(step, make_state(step), {"step": step}, RUN)
    checkpointer.close()
    workdir.release()


def restored(address):
    place = address if address == ADDRESS else pathlib.Path(address)
    with files_of(place) as folder:
        return CheckpointReader(folder).restore(abstract(make_state(0)))


def damage_and_restore(workdir, number, caplog):
    """Damages one random file, restores, and puts it back; returns whether step 4 was used."""
    draw = random.Random(number)
    name = draw.choice(sorted(workdir.files()))
    kind, content = draw.choice(KINDS), workdir.read(name)
    workdir.write(name, damaged(content, kind, draw) if content else None)
    caplog.clear()
    try:
        state, data_state, run = restored(workdir.address)
    finally:
        workdir.write(name, content)
    step = data_state["step"]
    assert_same(state, make_state(step))
    assert run == RUN
    if step == 2:
        assert "checkpoint 4 is" in caplog.text, (name, kind)
        assert "skipped: " in caplog.text, (name, kind)
    return step == 4, name, kind


@pytest.mark.parametrize("place", [OnDisk, InBucket])
def test_random_damage_is_named_or_does_not_matter(place, tmp_path, caplog):
    workdir = place(tmp_path)
    for number in range(4):
        damage_and_restore(workdir, number, caplog)


@pytest.mark.slow
@pytest.mark.parametrize("place", [OnDisk, InBucket])
def test_a_hundred_random_damages_are_named_or_do_not_matter(place, tmp_path, caplog):
    workdir = place(tmp_path)
    passed = [damage_and_restore(workdir, number, caplog) for number in range(100)]
    unnoticed = {name.rpartition("/")[2] for is_used, name, _ in passed if is_used}
    # Files that no restore reads, and spaces in the list of digests.
    assert unnoticed <= {"_CHECKPOINT_METADATA", "digests.json", "commit_success.txt"}
