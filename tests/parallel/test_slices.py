"""Guards the table of TPU slices: how gcloud rents them, and that the compiler knows them."""

import jax
import pytest
from jax.experimental import topologies

from m3ae_tpu.errors import UserError
from m3ae_tpu.kernels.chips import CHIPS
from m3ae_tpu.parallel.slices import GENERATIONS, find_slice


@pytest.mark.parametrize(
    ("accelerator", "num_chips", "num_hosts", "topology"),
    [
        ("v4-8", 4, 1, "v4:2x2x1"),
        ("v4-16", 8, 2, "v4:2x2x2"),
        ("v4-256", 128, 32, "v4:4x4x8"),
        ("v5litepod-1", 1, 1, "v5e:1x1"),
        ("v5litepod-8", 8, 1, "v5e:2x4"),
        ("v5litepod-16", 16, 4, "v5e:4x4"),
        ("v5litepod-256", 256, 64, "v5e:16x16"),
        ("v5p-1024", 512, 128, "v5p:8x8x8"),
        ("v6e-32", 32, 8, "v6e:4x8"),
    ],
)
def test_what_is_rented_has_chips_hosts_and_a_shape(accelerator, num_chips, num_hosts, topology):
    found = find_slice(accelerator)
    assert (found.num_chips, found.num_hosts, found.topology) == (num_chips, num_hosts, topology)
    assert found.hbm_bytes == CHIPS[found.chip].hbm_bytes


@pytest.mark.parametrize(
    ("accelerator", "says"),
    [
        ("v5e-256", r"Did you mean v5litepod-256\?"),
        ("v4-100", r"v4 counts TensorCores\. The nearest slice is v4-128"),
        ("v5litepod-512", r"v5litepod counts chips\. The nearest slice is v5litepod-256"),
        ("v6e", r"is not of v4, v5litepod, v5p, v6e"),
    ],
)
def test_what_nobody_rents_is_refused_with_the_nearest(accelerator, says):
    with pytest.raises(UserError, match=says):
        find_slice(accelerator)


@pytest.mark.tpu_compiler
@pytest.mark.parametrize("chip", GENERATIONS)
def test_the_compiler_knows_the_slice_and_its_hosts(chip):
    accelerator = GENERATIONS[chip].accelerator
    found = find_slice(f"{accelerator}-{64 if GENERATIONS[chip].counts_cores else 32}")
    options = {"chip_config_name": found.chip_config} if found.chip_config else {}
    described = topologies.get_topology_desc(
        platform="tpu", topology_name=found.topology, **options
    )
    devices = described.devices
    assert len(devices) == found.num_chips
    assert len({device.process_index for device in devices}) == found.num_hosts
    assert {device.device_kind for device in devices} == {CHIPS[chip].device_kind}
    assert jax.default_backend() == "cpu"
