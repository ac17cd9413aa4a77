"""Names of files that lie beside data and are not data: of systems, of tools, and documents."""

import re

_SYSTEM_FOLDERS = {
    *("__MACOSX", "@eaDir", "$RECYCLE.BIN", "System Volume Information", "lost+found"),
    *("_temporary", "_delta_log", "_spark_metadata", "__pycache__"),
}
_SYSTEM = re.compile(
    r"thumbs\.db|ehthumbs\w*\.db|desktop\.ini|icon\r|.*\.(?:crc|aae|xmp|thm)"
    r"|_success|_metadata|_common_metadata|_committed_.*|_started_.*|.*_stats\.json",
    re.IGNORECASE,
)
_WORD = r"(?:[a-z]{2,6}|\d+(?:\.\d+)*)"
_DOCUMENT = re.compile(
    r"(?:readme|licen[cs]e|notice|copying|changelog|changes|citation|contributing|authors"
    r"|code_of_conduct|security|acknowledgements?|attribution|terms|datasheet|dataset_?card"
    rf"|manifest|requirements)(?:[-_. ]{_WORD})*",
    re.IGNORECASE,
)
_OF_DATASETS = {"dataset_infos.json", "dataset_info.json", "dataset_dict.json", "state.json"}
_PROGRAM_ENDINGS = (
    *("py", "pyc", "ipynb", "sh", "bat", "ps1", "r", "m", "js", "css", "html", "htm", "php"),
    *("yaml", "yml", "toml", "cfg", "ini", "conf", "lock", "log", "bib", "cff", "url", "webloc"),
    *("md5", "sha1", "sha256", "sha512", "sfv", "torrent", "names", "data-card"),
)
_SUMS = re.compile(r"(?:md5|sha\d+|check)_?sums?(?:\.\w+)?", re.IGNORECASE)


DOCUMENT = "document about the data"


def helper_file_reason(path: str) -> str:
    """Returns why a file of a folder is not data, by its name; empty if the name tells nothing.

    Args:
        path: The file's path in the folder.
    """
    *folders, name = path.split("/")
    if not _SYSTEM_FOLDERS.isdisjoint(folders) or _SYSTEM.fullmatch(name):
        return "file of a system or a tool"
    ending = name.rpartition(".")[2].lower() if "." in name else ""
    if _SUMS.fullmatch(name):
        return "checksums"
    if ending in _PROGRAM_ENDINGS:
        return "program, settings or log"
    if name in _OF_DATASETS or (ending not in _DATA_ENDINGS and _DOCUMENT.fullmatch(name)):
        return DOCUMENT
    return ""


_DATA_ENDINGS = ("jsonl", "ndjson", "csv", "tsv", "parquet", "jpg", "jpeg", "png", "webp")
