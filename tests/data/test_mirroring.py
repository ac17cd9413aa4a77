"""Guards which captions allow that their image is mirrored."""

import pytest

from m3ae_tpu.data.mirroring import may_mirror
from m3ae_tpu.data.shards import open_shards


@pytest.mark.parametrize(
    "caption",
    [
        "A left arrow.",
        "LEFT and right",
        "A down-right arrow, related to direction.",
        "The flag of France: a republic.",
        'A Japanese "vacancy" button.',
        "A flat drawing of a SOON arrow.",
        "A 3D rendering of three o'clock.",
        "A 3D rendering of twelve-thirty.",
        "An alarm clock.",
        "A keycap 7.",
        "A sign that says stop",
        "Clockwise vertical arrows.",
        "A map of Denmark.",
    ],
)
def test_a_caption_that_mirroring_would_falsify_keeps_its_image(caption):
    assert not may_mirror(caption)


@pytest.mark.parametrize(
    "caption",
    [
        "",
        "A cat.",
        "A 3D rendering of a mosquito.",
        "A bright red car.",
        "A signal tower.",
        "Leftovers in a box.",
    ],
)
def test_other_images_may_be_mirrored(caption):
    assert may_mirror(caption)


def test_no_flag_and_few_others_of_the_starter_set_stay_unmirrored():
    records = list(open_shards("starter/train-*"))
    kept = [record for record in records if not may_mirror(record.captions[0])]
    assert {record.id for record in records if record.label_name == "flags"} <= {
        record.id for record in kept
    }
    assert 0.1 < len(kept) / len(records) < 0.3
