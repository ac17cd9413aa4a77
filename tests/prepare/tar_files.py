"""Archives for the tests of tars, with members whose contents say whose they are."""

import io
import tarfile

from m3ae_tpu.prepare.readers.archives import read_tar

JPEG = b"\xff\xd8\xff"
TEXTS = ("txt", "text", "caption", "cls", "json")


def content_of(name):
    """A member's content, which says whose it is."""
    is_text = name.lower().endswith(TEXTS)
    return (b"" if is_text else JPEG) + name.encode("utf-8", "surrogateescape")


def header(name, type=tarfile.REGTYPE, link="", size=0):
    member = tarfile.TarInfo(name)
    member.type, member.linkname, member.size = type, link, size
    return member


def pack(path, *members, format=tarfile.GNU_FORMAT):
    """Writes an archive of names, of names with contents, and of headers; returns its path."""
    with tarfile.open(path, "w", format=format) as archive:
        for member in members:
            if isinstance(member, tarfile.TarInfo):
                archive.addfile(member)
            else:
                name, content = (member, content_of(member)) if isinstance(member, str) else member
                archive.addfile(header(name, size=len(content)), io.BytesIO(content))
    return str(path)


def text_of(content):
    return content and content.removeprefix(JPEG).decode("utf-8", "surrogateescape")


def captions(sample):
    return [text_of(text) for text in sample.captions]


def read(url):
    """Image and caption of each sample, or the reason why there is none."""
    return [
        sample.fault.reason
        if sample.fault
        else (text_of(sample.image), next(iter(captions(sample)), None))
        for sample in read_tar(str(url))
    ]
