"""Guards the reader of the compiler's refusals: a chip's memory, and nothing else."""

import pytest

from m3ae_tpu.rehearsal.compiled import refusal

EARLY = (
    "RESOURCE_EXHAUSTED: E1000: CompileTimeHbmOom: Ran out of memory on HBM, the total memory "
    "required for HLO temporaries (17.21G) exceeds available HBM (15.75G). HLO module: jit_step."
)
LATE = (
    "RESOURCE_EXHAUSTED: XLA:TPU compile permanent error. Ran out of memory in memory space hbm. "
    "Used 16.80G of 15.75G hbm. Exceeded hbm capacity by 1.05G. HLO module: jit_step."
)
OF_A_KERNEL = (
    "RESOURCE_EXHAUSTED: XLA:TPU compile permanent error. Ran out of memory in memory space vmem. "
    "Used 18.04M of 16.00M vmem. Exceeded vmem capacity by 2.04M."
)


@pytest.mark.parametrize(("text", "needed"), [(EARLY, 17.21), (LATE, 16.80)])
def test_both_forms_of_a_refusal_are_read(text, needed):
    assert refusal(RuntimeError(text)) == (round(needed * 2**30), round(15.75 * 2**30))


@pytest.mark.parametrize("text", [OF_A_KERNEL, "INTERNAL: Mosaic failed to compile"])
def test_another_error_is_raised(text):
    with pytest.raises(RuntimeError):
        refusal(RuntimeError(text))
