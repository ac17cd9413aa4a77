"""Guards the contact sheet: it shows every kind of row, and hides what the masks hide."""

import numpy as np
import pytest
from PIL import Image

from m3ae_tpu.config import DataConfig, ModelConfig, PretrainConfig, SourceConfig
from m3ae_tpu.data.sources import open_data
from m3ae_tpu.data.text import Tokenizer
from m3ae_tpu.errors import UserError
from m3ae_tpu.report.contact_sheet import draw_contact_sheet, hide_patches
from m3ae_tpu.report.sheet_file import require_no_other_file, save_sheet


def test_patches_that_are_not_visible_are_grey():
    images = np.random.default_rng(0).integers(0, 100, (2, 8, 8, 3), np.uint8)
    seen = hide_patches(images, np.array([[0], [3]]), 4)
    np.testing.assert_array_equal(seen[0, :4, :4], images[0, :4, :4])
    np.testing.assert_array_equal(seen[1, 4:, 4:], images[1, 4:, 4:])
    assert [int((image == 150).all(axis=-1).sum()) for image in seen] == [48, 48]


def test_a_contact_sheet_shows_every_kind():
    sources = (
        SourceConfig(shards="starter/heldout-*"),
        SourceConfig(kind="image", shards="starter/images-*"),
        SourceConfig(kind="text", shards="starter/texts-*"),
    )
    data = DataConfig(sources=sources, image_size=32, num_workers=0)
    config = PretrainConfig(batch_size=6, model=ModelConfig(patch_size=8), data=data)
    batch, _ = open_data(data, batch_size=6, seed=0, vocab_size=32_000).loader().batch_at(0)
    tokenizer = Tokenizer(data.tokenizer)
    sheet = draw_contact_sheet(config, batch, tokenizer)
    pairs = draw_contact_sheet(config, {"paired": batch["paired"]}, tokenizer)
    assert sheet.width == pairs.width
    assert sheet.height > pairs.height > 192
    assert (np.asarray(pairs) == 150).all(axis=-1).sum() > 192 * 192


def test_a_sheet_replaces_an_earlier_one_and_no_other_file(tmp_path):
    sheet = Image.new("RGB", (4, 4))
    path = tmp_path / "contact_sheet.png"
    require_no_other_file(path)
    save_sheet(sheet, path)
    require_no_other_file(path)
    for other in (lambda: sheet.save(path), lambda: path.write_bytes(b"mine")):
        other()
        with pytest.raises(UserError, match="is not a contact sheet"):
            require_no_other_file(path)
