"""Guards that no damage of the newest checkpoint is restored silently, whatever file it hits."""

import random

import pytest
from in_processes import run
from places import InBucket, OnDisk, place_of, step_files
from small_state import BY_ROW, RUN, abstract, assert_same, make_state

from m3ae_tpu.config import CheckpointConfig
from m3ae_tpu.run.checkpoint import Checkpointer
from m3ae_tpu.run.checkpoint_reader import CheckpointReader
from m3ae_tpu.run.claim import claim_workdir, files_of

KINDS = ("flip", "shorten", "remove")
# Files that no restore reads, and spaces in the list of digests.
HARMLESS = {"_CHECKPOINT_METADATA", "digests.json", "commit_success.txt"}


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


def save(address):
    """Saves two steps there, as a run does."""
    workdir = claim_workdir(place_of(address))
    checkpointer = Checkpointer(
        workdir.path, CheckpointConfig(), before_commit=workdir.before_commit
    )
    for step in (2, 4):
        checkpointer.save(step, make_state(step), {"step": step}, RUN)
    checkpointer.close()
    workdir.release()


def restored(address):
    with files_of(place_of(address)) as folder:
        return CheckpointReader(folder).restore(abstract(make_state(0), sharding=BY_ROW))


def damage_and_restore(workdir, number, caplog, *, newest=4):
    """Damages one random file of the newest step, restores, and puts it back.

    Returns whether that step was used, the file and its damage.
    """
    draw = random.Random(number)
    name, content = draw.choice(sorted(step_files(workdir, newest).items()))
    kind = draw.choice(KINDS)
    workdir.write(name, damaged(content, kind, draw) if content else None)
    caplog.clear()
    try:
        state, data_state, run = restored(workdir.address)
    finally:
        workdir.write(name, content)
    step = data_state["step"]
    assert_same(state, make_state(step))
    assert run == RUN
    if step != newest:
        assert step == newest - 2
        assert f"checkpoint {newest} is" in caplog.text, (name, kind)
        assert "skipped: " in caplog.text, (name, kind)
    return step == newest, name, kind


@pytest.mark.parametrize("place", [OnDisk, InBucket])
def test_random_damage_is_named_or_does_not_matter(place, tmp_path, caplog):
    workdir = place(tmp_path)
    save(workdir.address)
    for number in range(4):
        damage_and_restore(workdir, number, caplog)


@pytest.mark.long
@pytest.mark.parametrize("place", [OnDisk, InBucket])
def test_a_hundred_random_damages_are_named_or_do_not_matter(place, tmp_path, caplog):
    workdir = place(tmp_path)
    save(workdir.address)
    passed = [damage_and_restore(workdir, number, caplog) for number in range(100)]
    assert unnoticed(passed) <= HARMLESS


@pytest.mark.parametrize(
    "place",
    [
        pytest.param(OnDisk, marks=pytest.mark.slow),
        pytest.param(InBucket, marks=pytest.mark.long),
    ],
)
def test_damage_of_what_several_processes_wrote_is_named_or_does_not_matter(
    place, tmp_path, caplog
):
    workdir = place(tmp_path)
    run(2, "save", workdir.address)
    assert any("/ocdbt.process_1/" in name for name in step_files(workdir, 6))
    passed = [damage_and_restore(workdir, number, caplog, newest=6) for number in range(60)]
    assert unnoticed(passed) <= HARMLESS


def unnoticed(passed):
    """Returns the names of files whose damage kept no step from being used."""
    return {name.rpartition("/")[2] for is_used, name, _ in passed if is_used}
