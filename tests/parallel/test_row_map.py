"""Guards functions of rows: results in order, whatever their number, from all devices."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from m3ae_tpu.parallel.mesh import make_mesh
from m3ae_tpu.parallel.row_map import ROWS_PER_DEVICE, RowMap


@pytest.mark.parametrize("num_rows", [1, 8 * ROWS_PER_DEVICE, 8 * ROWS_PER_DEVICE + 3])
def test_every_row_has_its_result_in_order(num_rows):
    add = RowMap(lambda offset, rows: {"sum": rows["a"] + rows["b"] + offset}, make_mesh())
    rows = {"a": np.arange(num_rows), "b": np.ones(num_rows, np.int32), "none": None}
    np.testing.assert_array_equal(add(jnp.int32(5), rows)["sum"], np.arange(num_rows) + 6)


def test_all_devices_compute_as_many_rows():
    mesh = make_mesh()
    double = RowMap(lambda _, rows: 2 * rows, mesh)
    result = double.run_batch(None, np.arange(8 * ROWS_PER_DEVICE))
    assert {shard.device for shard in result.addressable_shards} == set(jax.devices())
    assert {shard.data.shape for shard in result.addressable_shards} == {(ROWS_PER_DEVICE,)}
