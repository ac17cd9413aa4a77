"""Folders of a bucket in Google Cloud Storage: objects that are listed, read, written, removed.

Google's packages are imported on the first use: a local run needs none of them.
"""

import base64
import concurrent.futures
import contextlib
import datetime
import errno
import fnmatch
import functools
import os
import pathlib
import re
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

from m3ae_tpu.errors import UserError, require
from m3ae_tpu.files import REMOTE

_NUM_THREADS = 32
"""Requests of one call that are under way at once."""
_TIMEOUT_SECONDS = 60.0
"""Time that one request may take, and, at the start of a program, all tries of it together."""


class ChangedError(Exception):
    """Refusal of a conditional write: the object is of another generation now."""


class StoredObject(NamedTuple):
    """Size, digest and age of an object, as a listing tells them."""

    num_bytes: int
    md5: str
    """Hexadecimal, as the storage computed it; empty for objects that were composed of others."""
    generation: int
    """Number that every write of the object raises."""
    updated: datetime.datetime


def split_address(address: str) -> tuple[str, str]:
    """Returns the folder of a remote address, and the name after its last slash."""
    folder, _, name = address.rstrip("/").rpartition("/")
    require(
        bool(folder.removeprefix("gs:/")),
        f"{address} names a bucket, but nothing in it. Write {REMOTE}BUCKET/NAME.",
    )
    return folder, name


class RemoteFolder:
    """The objects whose names begin with a folder's. Thread-safe; pickles."""

    def __init__(self, address: str):
        """Takes `gs://BUCKET/FOLDER`. Asks nothing of the storage.

        Raises:
            UserError: the address has no bucket, or Google's packages are not installed.
        """
        self.address = address.rstrip("/")
        self._bucket_name, _, below = self.address.removeprefix(REMOTE).partition("/")
        self._prefix = f"{below}/" if below else ""
        require(
            bool(re.fullmatch(r"[a-z0-9][a-z0-9._-]{1,220}[a-z0-9]", self._bucket_name)),
            f"{address} does not name a bucket. Write {REMOTE}BUCKET/FOLDER; buckets have names of "
            "3 or more small letters, digits, dots, dashes and underscores.",
        )
        _client(self.address)

    def require_reachable(self) -> None:
        """Asks for one object's name, which tells whether the folder can be used at all.

        Raises:
            UserError: credentials, the bucket, or the permission to list it is missing.
            OSError: the storage cannot be reached.
        """
        self._list(max_results=1)

    def objects(self, below: str = "") -> dict[str, StoredObject]:
        """Returns all objects of a subfolder by their names in it; a request for each thousand."""
        return self._list(below)[0]

    def files(self) -> dict[str, StoredObject]:
        """Returns the objects that lie in no subfolder."""
        return self._list(delimiter="/")[0]

    def subfolders(self, below: str = "") -> list[str]:
        """Returns the names of the folders directly in a subfolder."""
        return self._list(below, delimiter="/")[1]

    def _list(
        self, below: str = "", *, delimiter: str | None = None, max_results: int | None = None
    ) -> tuple[dict[str, StoredObject], list[str]]:
        """Returns the objects and, with a delimiter, the folders of a subfolder."""
        prefix = f"{self._prefix}{below}/" if below else self._prefix
        with _problems_named(self.address, of_object=False):
            listing = self._bucket.list_blobs(
                prefix=prefix,
                delimiter=delimiter,
                max_results=max_results,
                timeout=_TIMEOUT_SECONDS,
                retry=_retry(),
            )
            found = {blob.name.removeprefix(prefix): _described(blob) for blob in listing}
        # Consoles make empty objects for folders.
        objects = {name: stored for name, stored in found.items() if not f"/{name}".endswith("/")}
        folders = [name.removeprefix(prefix).rstrip("/") for name in listing.prefixes]
        return objects, sorted(folders)

    def stat(self, name: str) -> StoredObject:
        """Returns what is known of one object.

        Raises:
            FileNotFoundError: there is no such object.
        """
        blob = self._blob(name)
        with _problems_named(self._address_of(name)):
            blob.reload(timeout=_TIMEOUT_SECONDS, retry=_retry())
        return _described(blob)

    def exists(self, name: str) -> bool:
        """Returns whether there is such an object."""
        try:
            self.stat(name)
        except FileNotFoundError:
            return False
        return True

    def read(self, name: str, start: int = 0, num_bytes: int | None = None) -> bytes:
        """Returns an object's content, or a part of it. A whole one is compared with its digest.

        Raises:
            FileNotFoundError: there is no such object.
        """
        return self.read_generation(name, start, num_bytes)[0]

    def read_generation(
        self, name: str, start: int = 0, num_bytes: int | None = None
    ) -> tuple[bytes, int]:
        """Returns content and generation of an object, like `read`."""
        blob = self._blob(name)
        end = None if num_bytes is None else start + num_bytes - 1
        with _problems_named(self._address_of(name)):
            content = blob.download_as_bytes(
                start=start or None,
                end=end,
                raw_download=True,
                timeout=_TIMEOUT_SECONDS,
                retry=_retry(),
            )
        return content, int(blob.generation)

    def write(self, name: str, content: bytes, *, generation: int | None = None) -> int:
        """Writes an object whole, and returns its generation.

        Args:
            name: The object's.
            content: All of its bytes.
            generation: Writes only if the object is of this generation; 0: only if it is missing.

        Raises:
            ChangedError: the object is of another generation. It may be of this very call, whose
                first answer was lost.
        """
        blob = self._blob(name)
        with _problems_named(self._address_of(name), of_object=False):
            blob.upload_from_string(
                content,
                content_type="application/octet-stream",
                if_generation_match=generation,
                timeout=_TIMEOUT_SECONDS,
                retry=_retry(),
            )
        return int(blob.generation)

    def upload(self, name: str, path: pathlib.Path) -> None:
        """Writes an object with the content of a file that does not change meanwhile."""
        with _problems_named(self._address_of(name), of_object=False):
            self._blob(name).upload_from_filename(
                path, timeout=_TIMEOUT_SECONDS, retry=_retry(), checksum="md5"
            )

    def remove(self, names: Iterable[str], *, generation: int | None = None) -> None:
        """Removes objects; those that are gone already do not count.

        Raises:
            ChangedError: an object is of another generation than the one named.
        """

        def remove_one(name: str) -> None:
            with contextlib.suppress(FileNotFoundError), _problems_named(self._address_of(name)):
                self._blob(name).delete(
                    if_generation_match=generation, timeout=_TIMEOUT_SECONDS, retry=_retry()
                )

        with concurrent.futures.ThreadPoolExecutor(_NUM_THREADS) as pool:
            list(pool.map(remove_one, list(names)))

    @property
    def _bucket(self) -> Any:
        return _client(self.address).bucket(self._bucket_name)

    def _blob(self, name: str) -> Any:
        return self._bucket.blob(f"{self._prefix}{name}")

    def _address_of(self, name: str) -> str:
        return f"{self.address}/{name}"


def matching_objects(pattern: str) -> dict[str, StoredObject]:
    """Returns the objects that a glob names by their addresses, sorted.

    A star does not match a slash. A pattern without a match, and an object's own name, stand for
    themselves.
    """
    fixed = re.split(r"[*?\[]", pattern, maxsplit=1)[0]
    folder = RemoteFolder(fixed.rpartition("/")[0])
    num_parts = pattern.count("/")
    found = {f"{folder.address}/{name}": found for name, found in _below(folder, pattern).items()}
    return {
        address: stored
        for address, stored in sorted(found.items())
        if address == pattern
        or (address.count("/") == num_parts and fnmatch.fnmatchcase(address, pattern))
    }


def _below(folder: RemoteFolder, pattern: str) -> dict[str, StoredObject]:
    """Returns the objects among which a glob's are: those of one folder, or of all below it."""
    is_flat = "/" not in pattern.removeprefix(f"{folder.address}/")
    return folder.files() if is_flat else folder.objects()


def _described(blob: Any) -> StoredObject:
    md5 = base64.b64decode(blob.md5_hash).hex() if blob.md5_hash else ""
    return StoredObject(int(blob.size), md5, int(blob.generation), blob.updated)


@functools.cache
def _shared_client() -> Any:
    import requests.adapters
    from google.cloud import storage

    # The project is named for making buckets only.
    client = storage.Client(project=os.environ.get("GOOGLE_CLOUD_PROJECT", "none"))
    for scheme in ("https://", "http://"):
        # As many connections stay open as there are threads.
        client._http.mount(scheme, requests.adapters.HTTPAdapter(pool_maxsize=2 * _NUM_THREADS))
    return client


def _client(address: str) -> Any:
    with _problems_named(address):
        return _shared_client()


def _retry() -> Any:
    from google.cloud.storage.retry import DEFAULT_RETRY

    return DEFAULT_RETRY.with_timeout(_TIMEOUT_SECONDS)


@contextlib.contextmanager
def _problems_named(address: str, *, of_object: bool = True) -> Iterator[None]:
    """Raises `UserError`, `OSError` or `ChangedError` in place of the errors of Google's packages.

    Args:
        address: What is used, for the message.
        of_object: Whether an object is used that may be missing; otherwise only its bucket may.

    Raises:
        UserError: packages, credentials, the bucket or a permission are missing.
        FileNotFoundError: the object is missing.
        ChangedError: a condition does not hold.
        OSError: the storage cannot be reached, or fails; names the address.
    """
    try:
        import gcsfs  # noqa: F401  # Orbax reaches buckets by it.
        import requests
        from google.api_core import exceptions
        from google.auth import exceptions as auth
        from google.cloud.storage.exceptions import DataCorruption
    except ImportError as error:
        raise UserError(
            f"{address} needs the package {_package(error)}, which is not installed. "
            "Install it: pip install 'm3ae-tpu[gcs]'."
        ) from None
    try:
        yield
    except auth.TransportError as error:
        raise _unreachable(address, error) from error
    except auth.GoogleAuthError as error:
        raise UserError(
            f"{address} needs credentials of Google Cloud, and there are none that work "
            f"({_first_sentence(error)}). Run `gcloud auth application-default login`, or start on "
            "a machine whose service account may use the bucket."
        ) from None
    except exceptions.NotFound as error:
        if not of_object or "bucket does not exist" in str(error.message):
            bucket = address.removeprefix(REMOTE).partition("/")[0]
            raise UserError(
                f"{address} is in bucket {bucket}, which does not exist. "
                f"Check the name, or make it: gcloud storage buckets create {REMOTE}{bucket}."
            ) from None
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), address) from None
    except (exceptions.Forbidden, exceptions.Unauthorized) as error:
        raise UserError(
            f"{address} may not be used with these credentials ({_first_sentence(error)}). "
            "Ask for the role Storage Object User on the bucket, or log in as someone who has it."
        ) from None
    except exceptions.PreconditionFailed as error:
        raise ChangedError(address) from error
    except (
        exceptions.GoogleAPICallError,
        exceptions.RetryError,
        requests.RequestException,
        DataCorruption,
    ) as error:
        raise _unreachable(address, error) from error


def _unreachable(address: str, error: Exception) -> OSError:
    return OSError(errno.EIO, f"the storage fails: {_first_sentence(error)}", address)


def _package(error: ImportError) -> str:
    return {"google": "google-cloud-storage"}.get((error.name or "").partition(".")[0], "gcsfs")


def _first_sentence(error: Exception) -> str:
    text = str(getattr(error, "message", "") or error).strip()
    return re.split(r"\. |\n", text, maxsplit=1)[0].rstrip(".:")[:160]
