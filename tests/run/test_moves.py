"""Guards that a checkpoint of several processes restores on another number of them, bit for bit."""

import fake_gcs
import pytest
from in_processes import run
from small_state import BY_ROW, RUN, abstract, assert_same, make_state

from m3ae_tpu.errors import UserError
from m3ae_tpu.run.checkpoint_reader import CheckpointReader
from m3ae_tpu.run.claim import files_of


def restored(place):
    with files_of(place) as folder:
        return CheckpointReader(folder).restore(abstract(make_state(0), sharding=BY_ROW))


@pytest.mark.slow
def test_two_processes_save_in_a_bucket_and_one_or_four_restore():
    server = fake_gcs.shared_server()
    server.restart("bucket")
    place = "gs://bucket/run"
    run(2, "save", place)
    objects = server.buckets["bucket"]
    assert (objects["run/mine-0.txt"][0], objects["run/mine-1.txt"][0]) == (b"6", b"6")
    state, data_state, run_json = restored(place)
    assert (data_state, run_json) == ({"step": 6}, RUN)
    assert_same(state, make_state(6))
    name = next(name for name in objects if "/6/model/ocdbt.process_1/d/" in name)
    objects.put(name, objects[name][0][:-1], {}, {})
    assert restored(place)[1] == {"step": 4}
    assert all("restored 4\n" in output for output in run(4, "restore", place))


@pytest.mark.long
def test_four_processes_save_on_a_disk_and_one_or_two_restore(tmp_path):
    run(4, "save", tmp_path)
    state, data_state, _ = restored(tmp_path)
    assert data_state == {"step": 6}
    assert_same(state, make_state(6))
    file = next((tmp_path / "checkpoints" / "6" / "optimizer" / "ocdbt.process_3" / "d").iterdir())
    file.write_bytes(b"")
    assert all("restored 4\n" in output for output in run(2, "restore", tmp_path))
    for step in (4, 6):
        (tmp_path / "checkpoints" / str(step) / "digests.json").unlink()
    with pytest.raises(UserError, match="no undamaged checkpoint"):
        restored(tmp_path)
