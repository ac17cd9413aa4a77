"""Guards good images in odd forms: kept, upright, in the right colours, by cleaning and loader."""

import io
import struct
import subprocess
import sys
import zlib

import numpy as np
import pytest
from PIL import Image, ImageCms

from m3ae_tpu.data.images import decode_image
from m3ae_tpu.prepare.cleaning import Unfit, clean_image
from m3ae_tpu.prepare.options import CleaningOptions

OPTIONS = CleaningOptions(kind="image")
Y, X = np.mgrid[:40, :60]
PIXELS = np.stack([Y * 255 // 40, X * 255 // 60, (X + Y) * 2], axis=-1).astype(np.uint8)
IMAGE = Image.fromarray(PIXELS)
# Transpositions that undo those by which EXIF orientations 2 to 8 are turned upright.
STORED = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_90,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_270,
}
LIKE = {"JPEG": {"quality": 95}, "AVIF": {"quality": 95}, "WEBP": {"lossless": True}}


def encoded(format, image=IMAGE, **options):
    stream = io.BytesIO()
    image.save(stream, format, **LIKE.get(format, {}), **options)
    return stream.getvalue()


def assert_kept(data, expected=PIXELS, tolerance=3):
    """Compares what cleaning makes of an image, and what the loader then reads, with pixels."""
    cleaned, size = clean_image(data, OPTIONS)
    got = decode_image(cleaned)
    assert size == got.shape[1::-1]
    assert got.shape == expected.shape
    assert np.abs(got.astype(int) - expected).mean() < tolerance


def oriented(format, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    image = IMAGE.transpose(STORED[orientation]) if orientation in STORED else IMAGE
    if format.startswith("TIFF"):
        compression = format.partition(" ")[2] or None
        return encoded("TIFF", image, tiffinfo={274: orientation}, compression=compression)
    return encoded(format, image, exif=exif)


@pytest.mark.parametrize("orientation", range(2, 9))
@pytest.mark.parametrize("format", ["JPEG", "MPO", "PNG", "WEBP", "AVIF", "TIFF", "TIFF tiff_lzw"])
def test_an_orientation_is_applied_once_in_every_format(format, orientation):
    assert_kept(oriented(format, orientation))


@pytest.mark.parametrize("orientation", [0, 9, 65535])
@pytest.mark.parametrize("format", ["JPEG", "PNG", "TIFF"])
def test_an_orientation_that_does_not_exist_is_ignored(format, orientation):
    assert_kept(oriented(format, orientation))


# Pillow warns while it writes such an AVIF.
@pytest.mark.filterwarnings("ignore::UserWarning:PIL")
@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP", "AVIF"])
@pytest.mark.parametrize(
    "exif",
    [
        b"II*\0\x08\0\0\0\xff\xff" + b"\x12\x01\x03\0\x01\0\0\0\x63" * 3,
        b"MM\0*\xff\xff\xff\xff",
        b"II*\0\x08\0\0\0\1\0\x12\x01\x07\0\xff\xff\xff\xff\0\0\0\0",
    ],
)
def test_malformed_exif_makes_no_damage(format, exif):
    data = encoded(format, exif=b"Exif\0\0" + exif)
    assert_kept(data)
    decode_image(data)


def chunk(kind, body):
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


PNG_METADATA = {
    "profile of 2 MB": chunk(b"iCCP", b"p\0\0" + zlib.compress(bytes(2_000_000))),
    "text of 20 MB": chunk(b"zTXt", b"p\0\0" + zlib.compress(bytes(20_000_000))),
    "international text": chunk(b"iTXt", b"p\0\1\0\0\0" + zlib.compress(b"a" * 2_000_000)),
    "many texts": chunk(b"tEXt", b"p\0" + b"x" * 7_000) * 10_000,
    "damaged profile": chunk(b"iCCP", b"p\0\0garbage"),
    "damaged checksum": chunk(b"tEXt", b"p\0abc")[:-1] + b"!",
    "wrong lengths": chunk(b"gAMA", b"p") + chunk(b"cHRM", b"") + chunk(b"pHYs", b"1"),
    "private": chunk(b"prVt", b"p" * 100) + chunk(b"ABCD", b""),
    "broken animation": chunk(b"acTL", b"p") + chunk(b"fcTL", b""),
    "EXIF of 1 MB": chunk(b"eXIf", b"p" * 1_000_000),
    "damaged EXIF": chunk(b"eXIf", b"II*\0")[:-1] + b"!",
}


@pytest.mark.parametrize("case", PNG_METADATA)
def test_chunks_around_the_pixels_of_a_png_make_no_damage(case):
    good = encoded("PNG")
    data = good[:33] + PNG_METADATA[case] + good[33:]
    assert_kept(data)
    np.testing.assert_array_equal(decode_image(data), PIXELS)


def segment(marker, body):
    return bytes([0xFF, marker]) + struct.pack(">H", len(body) + 2) + body


JPEG = encoded("JPEG")
JPEG_VARIANTS = {
    "large XMP": JPEG[:2] + segment(0xE1, b"http://ns\0" + bytes(65_000)) * 70 + JPEG[2:],
    "damaged Photoshop": JPEG[:2] + segment(0xED, b"Photoshop 3.0\x008BIM\4\4\0\0") + JPEG[2:],
    "damaged MPO": JPEG[:2] + segment(0xE2, b"MPF\0garbage") + JPEG[2:],
    "two EXIF": JPEG[:2] + segment(0xE1, b"Exif\0\0junk") * 2 + JPEG[2:],
    "bytes between segments": JPEG[:20] + bytes(3) + JPEG[20:],
    "no end": JPEG[:-2],
    "motion photo": JPEG + b"\0\0\0\x18ftypmp42" + bytes(5_000),
    "progressive": encoded("JPEG", progressive=True),
    "several images": encoded("MPO", save_all=True, append_images=[IMAGE.rotate(90)]),
    "colours 4:1:1": encoded("JPEG", subsampling="4:1:1"),
}


@pytest.mark.parametrize("case", JPEG_VARIANTS)
def test_what_surrounds_the_pixels_of_a_jpeg_makes_no_damage(case):
    assert_kept(JPEG_VARIANTS[case])


def test_a_subsampling_without_a_name_is_decoded():
    grey = bytearray(encoded("JPEG", Image.new("RGB", (24, 8), (128, 128, 128)), subsampling=0))
    grey[grey.index(b"\xff\xc0") + 11] = 0x31
    assert_kept(bytes(grey), np.full((8, 24, 3), 128), tolerance=8)


def tiff(bits, photometric, rows, order="<", samples=1, extra=()):
    """Returns a TIFF of 16 x 16 pixels."""
    entries = sorted(
        [
            *((256, 16), (257, 16), (259, 1), (262, photometric), (277, samples), (278, 16)),
            *extra,
            *((258, bits), (273, None), (279, len(rows))),
        ]
    )
    start = 8 + 2 + 12 * len(entries) + 4
    depths = struct.pack(f"{order}{samples}H", *[bits] * samples) if samples > 1 else b""
    out = (b"II*\0" if order == "<" else b"MM\0*") + struct.pack(f"{order}IH", 8, len(entries))
    for tag, value in entries:
        if tag == 273:
            out += struct.pack(f"{order}HHII", tag, 4, 1, start + len(depths))
        elif tag == 258 and depths:
            out += struct.pack(f"{order}HHII", tag, 3, samples, start)
        else:
            out += struct.pack(f"{order}HHIHH", tag, 3, 1, value, 0)
    return out + bytes(4) + depths + rows


RAMP = np.arange(256).reshape(16, 16)
TWELVE_BITS = b"".join(
    bytes([a >> 4, (a & 15) << 4 | b >> 8, b & 255])
    for a, b in (RAMP * 16 + 8).reshape(-1, 2).tolist()
)
WIDE = (RAMP * 257).astype("<u2")


@pytest.mark.parametrize(
    ("data", "grey"),
    [
        (tiff(16, 1, WIDE.tobytes()), RAMP),
        (tiff(16, 1, WIDE.astype(">u2").tobytes(), ">"), RAMP),
        (tiff(16, 0, WIDE.tobytes()), 255 - RAMP),
        (tiff(8, 0, RAMP.astype(np.uint8).tobytes()), 255 - RAMP),
        (tiff(12, 1, TWELVE_BITS), RAMP),
        (tiff(16, 2, np.repeat(WIDE[..., None], 3, -1).tobytes(), samples=3), RAMP),
        (b"P5\n16 16\n15\n" + bytes([8] * 256), np.full((16, 16), 136)),
        (b"P5\n16 16\n1023\n" + b"\2\0" * 256, np.full((16, 16), 128)),
    ],
    ids=["16 bits", "big-endian", "white is 0", "8, white is 0", "12 bits", "RGB", "4", "10"],
)
def test_grey_of_other_depths_is_scaled_to_eight_bits(data, grey):
    assert_kept(data, np.stack([grey] * 3, axis=-1))


@pytest.mark.parametrize(
    ("data", "detail"),
    [
        (tiff(32, 1, np.ones(256, "<f4").tobytes(), extra=[(339, 3)]), "fractions"),
        (tiff(16, 1, bytes(1024), samples=2, extra=[(338, 2)]), "not read"),
    ],
)
def test_pixels_that_are_not_colors_are_dropped_by_that_name(data, detail):
    with pytest.raises(Unfit, match=f"image without known colors.*{detail}"):
        clean_image(data, OPTIONS)


def png(depth, color, row, *chunks):
    """Returns a PNG of 16 x 16 pixels whose rows are equal."""
    header = struct.pack(">IIBBBBB", 16, 16, depth, color, 0, 0, 0)
    rows = chunk(b"IDAT", zlib.compress((b"\0" + row) * 16))
    return b"".join(
        [b"\x89PNG\r\n\x1a\n", chunk(b"IHDR", header), *chunks, rows, chunk(b"IEND", b"")]
    )


@pytest.mark.parametrize(
    ("data", "row"),
    [
        (png(1, 0, b"\xf0\xf0", chunk(b"tRNS", b"\0\0")), [255]),
        (png(2, 0, b"\x1b" * 4, chunk(b"tRNS", b"\0\1")), [0, 255, 170, 255]),
        (png(4, 0, b"\x05\xaf" * 4, chunk(b"tRNS", b"\0\5")), [0, 255, 170, 255]),
        (png(16, 0, b"\x12\x34\x80\0" * 8, chunk(b"tRNS", b"\x12\x34")), [255, 128]),
        (png(16, 2, b"\x12\x34" * 48, chunk(b"tRNS", b"\x12\x34" * 3)), [255]),
        (png(16, 2, b"\x34\x12" * 48, chunk(b"tRNS", b"\x12\x34" * 3)), [52]),
        (png(16, 4, b"\x80\0\xff\xff\0\0\0\0" * 8), [128, 255]),
        (png(8, 3, b"\0\1" * 8, chunk(b"PLTE", b"PPPZZZ"), chunk(b"tRNS", b"\0")), [255, 90]),
    ],
    ids=["1 bit", "2 bits", "4 bits", "16 bits", "RGB", "other RGB", "alpha", "palette"],
)
def test_a_transparent_color_of_any_depth_becomes_white(data, row):
    expected = np.tile(np.array(row)[:, None], (16, 16 // len(row), 3))
    np.testing.assert_array_equal(decode_image(data), expected)
    assert_kept(data, expected)


@pytest.mark.parametrize("mode", ["LAB", "YCbCr", "CMYK", "RGBA"])
def test_other_color_spaces_of_tiff_give_their_colors(mode):
    if mode == "LAB":
        profiles = ImageCms.createProfile("sRGB"), ImageCms.createProfile("LAB")
        image = ImageCms.applyTransform(IMAGE, ImageCms.buildTransform(*profiles, "RGB", "LAB"))
    else:
        image = IMAGE.convert(mode)
    assert image is not None
    assert_kept(encoded("TIFF", image))


@pytest.mark.parametrize("format", ["JPEG", "TIFF"])
def test_cmyk_gives_its_colors_to_the_loader_too(format):
    decoded = decode_image(encoded(format, IMAGE.convert("CMYK")))
    assert np.abs(decoded.astype(int) - PIXELS).mean() < 3


@pytest.mark.parametrize("format", ["TIFF", "GIF", "WEBP", "PNG", "AVIF"])
def test_of_several_images_the_first_counts(format):
    first = IMAGE.quantize(255) if format == "GIF" else IMAGE
    other = Image.new("RGB", first.size, "red").convert(first.mode)
    data = encoded(format, first, save_all=True, append_images=[other])
    assert_kept(data, np.asarray(first.convert("RGB")), tolerance=5)


def test_the_largest_image_of_an_icon_counts():
    large = IMAGE.resize((64, 64))
    assert_kept(encoded("ICO", large, sizes=[(16, 16), (64, 64)]), np.asarray(large))


def test_a_webp_that_is_cut_within_its_exif_is_whole():
    assert_kept(encoded("WEBP", exif=b"Exif\0\0" + bytes(300))[:-50])


NOISE = Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 60, 3), np.uint8))
CUT = ["JPEG", "PNG", "WEBP", "GIF", "TIFF", "BMP", "AVIF", "JPEG2000", "PPM", "QOI", "ICO"]


@pytest.mark.parametrize("format", CUT)
def test_an_image_whose_pixels_are_cut_is_dropped_with_the_decoders_message(format):
    with pytest.raises(Unfit, match="damaged image") as caught:
        clean_image(encoded(format, NOISE)[:-200], OPTIONS)
    assert caught.value.fault.detail
    assert "0x" not in caught.value.fault.detail  # An address in memory changes from run to run.


def test_warnings_that_are_errors_make_no_damage_in_the_loader(tmp_path):
    exif = struct.pack("<4sIHHHII", b"II*\0", 8, 1, 0x010E, 2, 500, 90)
    (tmp_path / "a.tif").write_bytes(encoded("TIFF", tiffinfo={700: b"x"}) + exif)
    (tmp_path / "a.png").write_bytes(encoded("PNG", IMAGE.convert("P"), transparency=b"\0" * 3))
    program = (
        "import sys, warnings\n"
        "from m3ae_tpu.data.images import decode_image\n"
        "[decode_image(open(path, 'rb').read()) for path in sys.argv[1:]]\n"
        "warnings.warn_explicit('odd metadata', UserWarning, 'a.py', 1, 'PIL.TiffImagePlugin')\n"
    )
    paths = [str(tmp_path / "a.tif"), str(tmp_path / "a.png")]
    command = [sys.executable, "-W", "error::UserWarning", "-c", program, *paths]
    subprocess.run(command, check=True)
