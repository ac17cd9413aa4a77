"""Guards the names of slices, and the bandwidth of a mesh axis on them."""

import pytest

from m3ae_tpu.errors import UserError
from m3ae_tpu.rehearsal.topologies import HARDWARE, Slice, parse_slice


@pytest.mark.parametrize(
    ("name", "chips"),
    [("v5e:16x16", 256), ("v4:4x4x8", 128), ("v6e:1x1", 1), ("v5e:16x16x2slices", 512)],
)
def test_a_name_is_read_and_written_alike(name, chips):
    described = parse_slice(name)
    assert described.name == name
    assert described.num_chips == chips


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("v5e256", "v5e256 is not a slice of TPUs. Write it as v5e:16x16"),
        ("v7:2x2", "'v7' is not one of v4, v5e, v5p, v6e"),
        ("v5e:2x2x2", "a slice of v5e has 2 sides, at most 16x16"),
        ("v5e:32x16", "a slice of v5e has 2 sides, at most 16x16"),
        ("v4:4x4", "a slice of v4 has 3 sides"),
        ("v5e:16x16x0slices", "0 slices are not 1 to 64"),
        ("", "is not a slice of TPUs"),
    ],
)
def test_another_name_is_refused_with_the_way_to_write_it(name, message):
    with pytest.raises(UserError) as error:
        parse_slice(name)
    assert message in str(error.value)
    assert "Write it as v5e:16x16" in str(error.value)


def test_the_name_by_which_a_slice_is_rented_leads_to_the_compilers():
    for name in ("v5litepod-256", "v5e-256"):
        with pytest.raises(UserError, match=rf"{name} is not .* Did you mean v5e:16x16\?"):
            parse_slice(name)


def test_an_axis_that_closes_to_a_ring_sends_both_ways():
    link = HARDWARE["v5e"].link_bytes_per_second
    assert parse_slice("v5e:16x16").axis_bytes_per_second(16) == 2 * link
    assert parse_slice("v5e:8x16").axis_bytes_per_second(8) == link
    assert parse_slice("v5e:4x4").axis_bytes_per_second(4) == link
    # A mesh axis over all chips has the links of both axes of the network.
    assert parse_slice("v5e:16x16").axis_bytes_per_second(256) == 4 * link


@pytest.mark.tpu_compiler
@pytest.mark.parametrize("name", ["v4:2x2x1", "v5e:1x1", "v5p:2x2x2", "v6e:2x2", "v5e:2x2x2slices"])
def test_the_compiler_describes_one_device_a_chip_as_the_table_of_chips_names_it(name):
    from m3ae_tpu.measure import tpu_schedule

    tpu_schedule.prepare(replay=False)
    described = parse_slice(name)
    devices = described.devices()
    assert len(devices) == described.num_chips
    assert {device.device_kind for device in devices} == {described.chip.device_kind}


@pytest.mark.tpu_compiler
def test_a_shape_that_no_hosts_make_up_is_refused():
    from m3ae_tpu.measure import tpu_schedule

    tpu_schedule.prepare(replay=False)
    with pytest.raises(UserError, match="v5e:3x3 is not a slice that the TPU compiler describes"):
        Slice("v5e", (3, 3), 1).devices()


@pytest.mark.tpu_compiler
@pytest.mark.parametrize("generation", sorted(HARDWARE))
def test_a_chips_capacity_is_the_one_that_a_refusal_names(generation):
    import jax
    import jax.numpy as jnp
    from jax.sharding import SingleDeviceSharding

    from m3ae_tpu.measure import tpu_schedule
    from m3ae_tpu.rehearsal.compiled import refusal

    tpu_schedule.prepare(replay=False)
    (device, *_) = parse_slice(
        f"{generation}:{'2x2' if generation in ('v5e', 'v6e') else '2x2x1'}"
    ).devices()
    large = jax.ShapeDtypeStruct((2**36,), jnp.float32, sharding=SingleDeviceSharding(device))
    with pytest.raises(jax.errors.JaxRuntimeError) as error:
        jax.jit(jnp.negative).lower(large).compile()
    needed, capacity = refusal(error.value)
    assert needed >= 2 * 4 * 2**36
    assert capacity == HARDWARE[generation].capacity_bytes
