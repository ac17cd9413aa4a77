"""Guards the prefetcher: batches of the loader on the devices, errors and hanging workers."""

import jax
import numpy as np
import pytest
from small_sets import assert_equal, data_of, pairs_of

from m3ae_tpu.data.prefetch import Prefetcher
from m3ae_tpu.data.records import Record
from m3ae_tpu.data.shards import write_shards
from m3ae_tpu.errors import DataError


def by_example() -> jax.sharding.NamedSharding:
    mesh = jax.make_mesh((2,), ("data",), devices=jax.devices()[:2])
    return jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("data"))


def test_prefetched_batches_lie_on_the_mesh_and_are_those_of_the_loader(folder):
    expected = data_of(folder).loader()
    batches = Prefetcher(data_of(folder).loader(start_step=2), by_example())
    for step in (2, 3, 4):
        batch, info = next(batches)
        assert all(array.sharding == by_example() for array in jax.tree.leaves(batch))
        assert_equal((jax.tree.map(np.asarray, batch), info), expected.batch_at(step))
    assert batches.wait_seconds > 0
    batches.close()
    with pytest.raises(RuntimeError, match="closed"):
        next(batches)


def test_an_error_of_the_loader_reaches_the_training_loop_and_stays(tmp_path):
    write_shards(tmp_path, "pairs", [Record(id="a", image=b"no image", captions=("a",))])
    batches = Prefetcher(pairs_of(tmp_path).loader(), by_example())
    for _ in range(2):
        with pytest.raises(
            DataError, match="record 0 is broken, and so are all 0 records after it"
        ):
            next(batches)
    batches.close()
