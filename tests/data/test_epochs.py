"""Guards that each record is read exactly once an epoch, whatever processes and workers read it."""

import pytest
from small_sets import data_of, numbered

from m3ae_tpu.config import SourceConfig
from m3ae_tpu.data.records import Record
from m3ae_tpu.data.shards import write_shards
from m3ae_tpu.parallel.share import Share, in_order

# Records of each source; no number divides by the source's rows in a batch.
COUNTS = {"pair": 23, "other": 7, "image": 9, "text": 31}
NUM_STEPS = 24


@pytest.fixture(scope="module")
def sets(tmp_path_factory):
    """Four sets whose records are named by their set."""
    folder = tmp_path_factory.mktemp("sets")
    images = numbered(23)
    for name, count in COUNTS.items():
        records = [
            Record(
                id=f"{name}-{index}",
                image=b"" if name == "text" else images[index].image,
                captions=() if name == "image" else (f"caption {index}",),
            )
            for index in range(count)
        ]
        write_shards(folder, name, records, num_shards=3)
    return folder


def loaders(folder, count, **options):
    """Returns the share and the loader of each of some processes."""
    sources = (
        SourceConfig(shards=f"{folder}/pair-*", weight=6.0, text_length=8),
        SourceConfig(shards=f"{folder}/other-*", weight=2.0, text_length=8),
        SourceConfig(kind="image", shards=f"{folder}/image-*", weight=4.0),
        SourceConfig(kind="text", shards=f"{folder}/text-*", weight=4.0, text_length=8),
    )
    data = data_of(folder, sources=sources, batch_size=16, **options)
    shares = [Share((index,), count) for index in range(count)]
    return [(share, data.loader(parts=share.parts, num_parts=share.num_parts)) for share in shares]


def read_ids(readers):
    """Returns the ids of each set in the order in which the steps see them."""
    seen = {name: [] for name in COUNTS}
    for _ in range(NUM_STEPS):
        infos = [next(loader)[1] for _, loader in readers]
        for kind in infos[0].ids:
            for id in in_order([share for share, _ in readers], [info.ids[kind] for info in infos]):
                seen[id.partition("-")[0]].append(id)
    for _, loader in readers:
        loader.close()
    return seen


@pytest.fixture(scope="module")
def of_one_process(sets):
    return read_ids(loaders(sets, 1))


def test_each_epoch_of_each_source_holds_each_record_once(of_one_process):
    for name, ids in of_one_process.items():
        count = COUNTS[name]
        everything = {f"{name}-{index}" for index in range(count)}
        epochs = [ids[start : start + count] for start in range(0, len(ids), count)]
        assert len(epochs) > 3
        assert all(set(epoch) == everything for epoch in epochs[:-1])
        # The epoch under way repeats nothing.
        assert len(set(epochs[-1])) == len(epochs[-1])
        assert epochs[0] != epochs[1]


@pytest.mark.parametrize(
    ("count", "num_workers"),
    [
        (2, 0),
        (4, 0),
        pytest.param(1, 3, marks=pytest.mark.long),
        pytest.param(2, 2, marks=pytest.mark.slow),
    ],
)
@pytest.mark.filterwarnings(
    "ignore::pytest.PytestUnraisableExceptionWarning"
)  # As in test_workers.
def test_processes_and_workers_share_the_records_and_read_none_twice(
    count, num_workers, sets, of_one_process
):
    assert read_ids(loaders(sets, count, num_workers=num_workers)) == of_one_process
