"""Small labelled sets, as `prepare_data --kind=labelled` makes them of a user's folders."""

import io

import numpy as np
from PIL import Image

from m3ae_tpu.data.records import Record
from m3ae_tpu.data.shards import write_shards


def write_labelled(folder, name, labels, *, captions=None, groups=None, seed=0):
    """Writes random images of the classes `labels` and returns the pattern of their shards.

    Args:
        folder: Folder of the shards.
        name: Name of the set.
        labels: Class of each record.
        captions: Caption of each record; an empty one is left out.
        groups: Near-duplicate group of each record; none by default.
        seed: Decides the images.
    """
    records = []
    for index, label in enumerate(labels):
        pixels = np.random.default_rng([seed, index]).integers(0, 256, (16, 16, 3), np.uint8)
        file = io.BytesIO()
        Image.fromarray(pixels).save(file, "PNG")
        caption = captions[index] if captions else ""
        records.append(
            Record(
                id=str(index),
                image=file.getvalue(),
                label_name=label,
                captions=(caption,) if caption else (),
                group=groups[index] if groups else "",
            )
        )
    write_shards(folder, name, records)
    return f"{folder}/{name}-*"
