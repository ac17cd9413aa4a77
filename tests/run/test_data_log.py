"""Guards the data's metrics: rows, epochs and faults add up, also over a restart."""

import json

import pytest

from m3ae_tpu.config import DataConfig, SourceConfig
from m3ae_tpu.data.broken import BrokenRow
from m3ae_tpu.data.loader import BatchInfo
from m3ae_tpu.data.sources import OpenData, open_data
from m3ae_tpu.errors import UserError
from m3ae_tpu.run.data_log import DataLog
from m3ae_tpu.run.record_ids import RecordIds


@pytest.fixture(scope="module")
def data() -> OpenData:
    """300 images and 10,672 texts, in batches of 6 and 2."""
    sources = (
        SourceConfig(kind="image", shards="starter/images-*", weight=3.0),
        SourceConfig(kind="text", shards="starter/texts-*", text_length=8),
    )
    return open_data(DataConfig(sources=sources), batch_size=8, seed=0, vocab_size=4_000)


def info(truncated: int = 0, broken: tuple[BrokenRow, ...] = ()) -> BatchInfo:
    return BatchInfo({"data/truncated_texts/text": truncated}, broken, {"text": ["a", "b"]})


def test_a_line_has_rows_and_epochs_so_far_and_sums_since_the_last_line(data):
    log = DataLog(data)
    for truncated in (1, 2):
        log.add(info(truncated, (BrokenRow(1, 7, "no_caption"),)))
    log.reduce()
    assert log.line(2) == {
        "data/truncated_texts/text": 3,
        "data/broken/no_caption": 2,
        "data/rows/image": 12,
        "data/epochs/image": 12 / 300,
        "data/rows/text": 4,
        "data/epochs/text": 4 / 10_672,
    }
    log.add(info(5))
    log.reduce()
    assert log.line(3)["data/truncated_texts/text"] == 5


def test_a_resumed_log_continues_where_its_state_was_taken(data):
    infos = [info(step, (BrokenRow(1, step % 3, "no_caption"),)) for step in range(6)]

    def add(log: DataLog, some: list[BatchInfo]) -> DataLog:
        for one in some:
            log.add(one)
        log.reduce()
        return log

    whole = add(add(DataLog(data), infos[:3]), infos[3:])
    state = json.loads(json.dumps(add(DataLog(data), infos[:3]).state))
    resumed = add(DataLog(data, state=state), infos[3:])
    assert resumed.state == whole.state
    assert resumed.line(6) == whole.line(6)


def test_too_many_broken_records_end_the_run_with_their_places(data):
    log = DataLog(data)
    log.add(info(0, tuple(BrokenRow(0, index, "no_image") for index in range(6))))
    with pytest.raises(UserError, match=r"source image is broken: 6 of its last 6 rows") as caught:
        log.reduce()
    assert "images-00000-of-00001.array_record, record 0" in str(caught.value)


def test_record_ids_of_steps_that_run_again_are_written_once(tmp_path):
    writer = RecordIds(tmp_path, is_logged=True)
    for step in (1, 2, 3):
        writer.add(step, info())
    writer.close()
    path = tmp_path / "record_ids.jsonl"
    lines = path.read_text()
    path.write_text(lines + '{"step": 4, "te')
    writer = RecordIds(tmp_path, is_logged=True, resume_step=2)
    writer.add(3, info())
    writer.close()
    assert path.read_text() == lines
    with pytest.raises(UserError, match=r"ends at step 3, but the run resumes after step 5"):
        RecordIds(tmp_path, is_logged=True, resume_step=5)
