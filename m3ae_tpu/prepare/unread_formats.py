"""Known formats that are not read: their names by a file's first bytes, and the ways out."""

import re
from typing import NamedTuple

from m3ae_tpu.data.image_formats import image_format, is_camera_raw


class UnreadFormat(NamedTuple):
    """A known format that is not read, as the reason and detail of a fault."""

    reason: str
    """The same words for every file of the format."""
    way_out: str
    """Advice in a few words."""


LOOKED_AT = 512
"""Bytes at the start of a file by which its format is recognised."""

_CONVERT = "convert it to JPEG or PNG"
_DEVELOP = "develop it to JPEG"
_EXPORT = "export it as JPEG or PNG"
_UNPACK = "unpack it first"
_ROWS = "write its rows as parquet"
_ARRAYS = "write its arrays as HDF5 or parquet"
_SAMPLES = "write its examples as tar or parquet"
_FRAMES = "save its frames as JPEG"
_TEXT = "save its text as plain text or CSV"
_HUGGING_FACE = "in Python: datasets.load_from_disk(FOLDER).to_parquet(FILE)"
_AGAIN = "a web page, most likely an error: download the file again, or extract its text"

# A pattern that a plain text could meet by chance asks for a byte that no text has.
_FORMATS = (
    ("Git LFS", rb"version https://git-lfs\.github\.com/spec/", "git lfs pull"),
    ("git-annex", rb"(?:\.\./)*(?:\.git)?/annex/objects/", "git annex get"),
    ("HTML", rb"(?:\xef\xbb\xbf)?\s*<(?i:!doctype\s+html|html|head|body)[\s>]", _AGAIN),
    ("SVG", rb"(?:\xef\xbb\xbf)?\s*<(?:(?:\?xml|!--|!DOCTYPE svg).*?<)?(?:svg:)?svg[\s>]", _EXPORT),
    ("XML", rb"(?:\xef\xbb\xbf)?\s*<\?xml\s", _TEXT),
    ("PDF", rb"%PDF-", "extract its images or its text"),
    ("EPS or PostScript", rb"%!PS|\xc5\xd0\xd3\xc6", _EXPORT),
    ("RTF", rb"\{\\rtf", _TEXT),
    ("Radiance HDR", rb"#\?(?:RADIANCE|RGBE)\n", _CONVERT),
    ("PAM", rb"P7\n(?:#|WIDTH|HEIGHT|DEPTH)", _CONVERT),
    ("PFM", rb"P[fF]\s+\d+\s+\d+\s+-?\d", _CONVERT),
    ("FITS", rb"SIMPLE  = ", _CONVERT),
    ("XPM", rb"/\* XPM \*/", _CONVERT),
    ("HEIC", rb"\0.{3}ftyp(?:he[iv][cxms]|m[is]f1(?:.{4}){1,16}?he[iv][cxms])", _CONVERT),
    ("JPEG XL", rb"\xff\x0a|\0\0\0\x0cJXL \r\n\x87\n", _CONVERT),
    ("JPEG XR", rb"II\xbc[\0\1]", _CONVERT),
    ("Photoshop document", rb"8BPS\0[\1\2]", _EXPORT),
    ("GIMP document", rb"gimp xcf ", _EXPORT),
    ("OpenEXR", rb"v/1\x01", _CONVERT),
    ("DDS", rb"DDS \x7c\0\0\0", _CONVERT),
    ("PCX", rb"\x0a[\0\2-\5]\x01[\1\2\4\x08]", _CONVERT),
    ("SGI image", rb"\x01\xda[\0\1][\1\2]\0[\1-\3]", _CONVERT),
    ("Sun raster", rb"\x59\xa6\x6a\x95", _CONVERT),
    ("Apple icon", rb"icns\0", _CONVERT),
    ("Windows cursor", rb"\0\0\x02\0[\x01-\x40]\0.{3}\0", _CONVERT),
    ("Windows metafile", rb"\xd7\xcd\xc6\x9a|\x01\0{3}.{36} EMF", _EXPORT),
    ("DjVu", rb"AT&TFORM", _CONVERT),
    ("BPG", rb"BPG\xfb", _CONVERT),
    ("DICOM", rb".{128}DICM\x02\0", _CONVERT),
    ("NIfTI", rb"\x5c\x01\0\0.{340}n[+i]1\0", _CONVERT),
    ("camera RAW", rb"\0.{3}ftypcrx |FUJIFILMCCD-RAW|IIR[OS]\x08\0|MMOR\0|IIU\0", _DEVELOP),
    ("camera RAW", rb"\0MRM|FOVb[\0-\x09]", _DEVELOP),
    # Targa has no magic number: kind, no palette, any origin, a size, bits a pixel, flags.
    (
        "TGA",
        rb".\0[\2\3\x0a\x0b]\0{5}.{4}(?!\0\0)..(?!\0\0)..[\x08\x10\x18\x20][\0-\x2f]",
        _CONVERT,
    ),
    ("Office document", rb"PK\x03\x04.{26}(?:\[Content_Types\]\.xml|_rels/)", _TEXT),
    ("Office document", rb"PK\x03\x04.{26}mimetype.{0,60}?application/", _TEXT),
    ("Office document", rb"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1", _TEXT),
    ("NumPy archive", rb"PK\x03\x04.{26}[^/\0]{1,200}?\.npy", _ARRAYS),
    ("PyTorch", rb"PK\x03\x04.{26}[^/\0]{1,100}/(?:data\.pkl|\.format_version)", _SAMPLES),
    ("zip", rb"PK(?:\x03\x04|\x05\x06|\x07\x08)", _UNPACK),
    ("7z", rb"7z\xbc\xaf\x27\x1c", _UNPACK),
    ("RAR", rb"Rar!\x1a\x07", _UNPACK),
    ("lz4", rb"\x04\x22\x4d\x18", _UNPACK),
    ("lzip", rb"LZIP\x01", _UNPACK),
    ("snappy", rb"\xff\x06\0\0sNaPpY", _UNPACK),
    ("compress", rb"\x1f\x9d", _UNPACK),
    # A file; or a stream, whose first message is a flatbuffer.
    ("Arrow", rb"ARROW1\0\0|\xff{4}.{3}\0[\x04-\x40]\0\0\0", _HUGGING_FACE),
    ("Feather", rb"FEA1\0", _ROWS),
    ("Avro", rb"Obj\x01", _ROWS),
    ("ORC", rb"ORC[\0-\x1f\x80-\xff]", _ROWS),
    ("SQLite", rb"SQLite format 3\0", _ROWS),
    ("DuckDB", rb".{8}DUCK.\0{7}", _ROWS),
    ("LMDB", rb".{16}\xde\xc0\xef\xbe", _SAMPLES),
    ("NumPy array", rb"\x93NUMPY", _ARRAYS),
    ("MATLAB", rb"MATLAB [57]\.\d MAT-file", _ARRAYS),
    ("pickle", rb"\x80[\2-\5][\x95\x8a\}\](c)XUKq]", _SAMPLES),
    ("MXNet RecordIO", rb"\x0a\x23\xd7\xce", _SAMPLES),
    ("video", rb"\0.{3}(?:ftyp|moov|mdat|wide)|RIFF.{4}AVI |\x1aE\xdf\xa3", _FRAMES),
    ("video", rb"\0\0\x01[\xba\xb3]|FLV\x01|\x30\x26\xb2\x75\x8e\x66\xcf\x11", _FRAMES),
    ("sound", rb"RIFF.{4}WAVE|fLaC\0|OggS\0|ID3[\2-\4]", "it has neither images nor texts"),
)
"""Name of each format, the start of its files, and the way out. The first that fits counts."""
_POINTERS = ("Git LFS", "git-annex")
"""Formats whose files name the content that was not fetched."""
_STARTS = re.compile(b"|".join(rb"(%s)" % start for _, start, _ in _FORMATS), re.DOTALL)


def unread_format(data: bytes) -> UnreadFormat | None:
    """Returns the format of a file if it is a known one that is not read.

    Args:
        data: The file, or its first 512 bytes or more.
    """
    start = data[:LOOKED_AT]
    if is_camera_raw(data):
        return UnreadFormat("camera RAW is not read", _DEVELOP)
    if image_format(data):
        return None
    if found := _STARTS.match(start):
        name, _, way_out = _FORMATS[(found.lastindex or 1) - 1]
        if name in _POINTERS:
            return UnreadFormat(f"not fetched from {name}", way_out)
        return UnreadFormat(f"{name} is not read", way_out)
    if _is_tfrecord(start):
        return UnreadFormat("TFRecord is not read", _SAMPLES)
    return None


def _is_tfrecord(start: bytes) -> bool:
    """Returns whether eight bytes of length are followed by their checksum."""
    if len(start) < 12 or start[5:8] != b"\0\0\0":
        return False
    checksum = 0xFFFFFFFF
    for byte in start[:8]:
        checksum ^= byte
        for _ in range(8):
            checksum = (checksum >> 1) ^ (0x82F63B78 if checksum & 1 else 0)
    checksum ^= 0xFFFFFFFF
    # TensorFlow turns CRC-32C by 15 bits and adds a constant.
    masked = ((checksum >> 15 | checksum << 17) + 0xA282EAD8) & 0xFFFFFFFF
    return masked == int.from_bytes(start[8:12], "little")
