"""A bucket on this machine: the JSON API of Google Cloud Storage, with exact preconditions.

It holds what gcsfs, google-cloud-storage, TensorStore and ArrayRecord ask for, in memory, and
delays or fails requests as a test wants. Also a program:

    python tests/fake_gcs.py --port=4445 --latency_seconds=0.05 BUCKET ...
"""

import argparse
import base64
import contextlib
import functools
import hashlib
import itertools
import json
import os
import re
import socket
import socketserver
import subprocess
import sys
import threading
import time
import urllib.parse
import urllib.request
from dataclasses import dataclass, field

import google_crc32c

_NUM_SENT = 2**17
"""Bytes of an answer that are sent at once. ArrayRecord asks for the rest of a file, and hangs up
when it has its record."""


class Refused(Exception):
    """An answer that is an error: its status and reason."""


@dataclass
class Answer:
    status: int = 200
    headers: dict = field(default_factory=dict)
    body: bytes | memoryview = b""


def as_json(value, status=200, **headers):
    return Answer(status, headers, json.dumps(value).encode())


def described(bucket, url, name, content, given):
    """The metadata of an object that is written now."""
    now = time.time_ns() // 1000
    clock = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(now / 1e6)) + f".{now % 10**6:06d}Z"
    crc = google_crc32c.value(content).to_bytes(4, "big")
    quoted = urllib.parse.quote(name, safe="")
    kept = {key: given[key] for key in ("metadata", "contentType", "cacheControl") if key in given}
    return kept | {
        "kind": "storage#object",
        "name": name,
        "bucket": bucket,
        "id": f"{bucket}/{name}/{now}",
        "size": str(len(content)),
        "generation": str(now),
        "metageneration": "1",
        "etag": str(now),
        "timeCreated": clock,
        "updated": clock,
        "md5Hash": base64.b64encode(hashlib.md5(content).digest()).decode(),
        "crc32c": base64.b64encode(crc).decode(),
        "mediaLink": f"{url}/download/storage/v1/b/{bucket}/o/{quoted}?alt=media",
    }


class Bucket(dict):
    """Objects by name: each a pair of content and metadata."""

    def __init__(self, name, url):
        self.name, self.url = name, url

    def check(self, name, query):
        """Refuses a request whose preconditions do not hold."""
        meta = self[name][1] if name in self else {"generation": "0", "metageneration": "0"}
        for what in ("Generation", "Metageneration"):
            wanted, unwanted = query.get(f"if{what}Match"), query.get(f"if{what}NotMatch")
            if wanted is not None and wanted != meta[what.lower()]:
                raise Refused(412, f"{name} has another {what.lower()} than {wanted}")
            if unwanted is not None and unwanted == meta[what.lower()]:
                raise Refused(304, "not modified")

    def put(self, name, content, query, given):
        self.check(name, query)
        meta = described(self.name, self.url, name, content, given)
        self[name] = (content, meta)
        return meta

    def find(self, name, query):
        if name not in self:
            raise Refused(404, f"No such object: {self.name}/{name}")
        self.check(name, query)
        return self[name]

    def page(self, query):
        prefix, delimiter = query.get("prefix", ""), query.get("delimiter", "")
        start, end = query.get("startOffset", ""), query.get("endOffset")
        after, limit = query.get("pageToken", ""), int(query.get("maxResults", 1000))
        items, prefixes, last = [], [], None
        for name in sorted(self):
            if not name.startswith(prefix) or name < start or (end and name >= end):
                continue
            cut = name.find(delimiter, len(prefix)) if delimiter else -1
            shown = name if cut < 0 else name[: cut + len(delimiter)]
            if (after and shown <= after) or shown in prefixes[-1:]:
                continue
            if len(items) + len(prefixes) == limit:
                more = {"nextPageToken": last}
                break
            last = shown
            if cut < 0:
                items.append(self[name][1])
            else:
                prefixes.append(shown)
        else:
            more = {}
        return {"kind": "storage#objects", "items": items, "prefixes": prefixes} | more


class FakeGcs(socketserver.ThreadingTCPServer):
    """The server. A context in which it runs and the clients of this process find it."""

    daemon_threads, allow_reuse_address, request_queue_size = True, True, 1024
    block_on_close = False

    def __init__(self, port=0, *buckets):
        super().__init__(("127.0.0.1", port), _Connection)
        self.url = f"http://127.0.0.1:{self.server_address[1]}"
        self.buckets = {name: Bucket(name, self.url) for name in buckets}
        self.latency_seconds = 0.0
        self.failures: list[list] = []
        """Lists of method, pattern of the path, status, and how often to fail."""
        self.requests = []
        """Method, path and status of each request."""
        self.most_at_once = 0
        """Requests that were being answered at the same time."""
        self.hold_until = 0
        """Requests wait until so many have come at the same time, or half a minute has passed."""
        self._num_now = 0
        self._turn, self._uploads, self._ids = threading.Condition(), {}, itertools.count(1)
        self._stack = contextlib.ExitStack()

    def restart(self, *buckets):
        """Forgets everything, and has these empty buckets."""
        self.buckets = {name: Bucket(name, self.url) for name in buckets}
        self.latency_seconds, self.failures, self.requests = 0.0, [], []
        self.most_at_once, self.hold_until = 0, 0

    def handle_error(self, request, client_address):
        if not isinstance(sys.exception(), ConnectionError):  # A client that hung up.
            super().handle_error(request, client_address)

    def __enter__(self):
        threading.Thread(target=self.serve_forever, daemon=True).start()
        self._stack.enter_context(found_by_clients(self.url))
        self._stack.callback(self.server_close)
        self._stack.callback(self.shutdown)
        return self

    def __exit__(self, *exception):
        self._stack.close()

    def answer(self, method, target, headers, body):
        path, _, text = target.partition("?")
        query = dict(urllib.parse.parse_qsl(text, keep_blank_values=True))
        with self._turn:
            self._num_now += 1
            self.most_at_once = max(self.most_at_once, self._num_now)
            self._turn.notify_all()
            if not self._turn.wait_for(lambda: self.most_at_once >= self.hold_until, timeout=30):
                self.hold_until = 0
        time.sleep(self.latency_seconds)
        with self._turn:
            self._num_now -= 1
            try:
                self._fail(method, target)
                answer = self._answer(method, path, query, headers, body)
            except Refused as refused:
                status, reason = refused.args
                error = {"code": status, "message": reason, "errors": [{"message": reason}]}
                answer = as_json({"error": error}, status)
            self.requests.append((method, target, answer.status))
        return answer

    def _fail(self, method, target):
        for failure in self.failures:
            if failure[0] == method and re.search(failure[1], target) and failure[3] > 0:
                failure[3] -= 1
                raise Refused(failure[2], "made up")

    def _answer(self, method, path, query, headers, body):
        parts = re.fullmatch(
            r"(/upload|/download)?/storage/v1/b(?:/([^/]+))?(?:(/o)(?:/([^/]+))?(?:/(.*))?)?", path
        )
        if parts is None:
            raise Refused(501, f"{method} {path} is not implemented")
        kind, bucket, is_object, name, action = parts.groups()
        if bucket is None and method == "POST":
            new = json.loads(body)["name"]
            self.buckets.setdefault(new, Bucket(new, self.url))
            return as_json({"kind": "storage#bucket", "name": new})
        if bucket not in self.buckets:
            raise Refused(404, "The specified bucket does not exist.")
        objects, name = self.buckets[bucket], name and urllib.parse.unquote(name)
        if kind == "/upload":
            return self._upload(objects, method, query, headers, body)
        if not is_object:
            return as_json({"kind": "storage#bucket", "name": bucket, "id": bucket})
        if name is None:
            return as_json(objects.page(query))
        if action:
            return self._copy(objects, name, action, query, body)
        content, meta = objects.find(name, query)
        if method == "DELETE":
            del objects[name]
            return Answer(204)
        if method == "PATCH":
            meta |= json.loads(body) | {"metageneration": str(int(meta["metageneration"]) + 1)}
        if query.get("alt") != "media":
            return as_json(meta)
        return _download(content, meta, headers)

    def _copy(self, objects, name, action, query, body):
        parts = re.fullmatch(r"(rewriteTo|moveTo|copyTo)(?:/b/([^/]+))?/o/([^/]+)", action)
        if parts is None:
            raise Refused(501, f"{action} is not implemented")
        content, meta = objects.find(name, {})
        target = self.buckets[parts[2] or objects.name]
        given = meta | json.loads(body or b"{}")
        new = target.put(urllib.parse.unquote(parts[3]), content, query, given)
        if parts[1] == "moveTo":
            del objects[name]
        if parts[1] != "rewriteTo":
            return as_json(new)
        size = str(len(content))
        done = {"done": True, "objectSize": size, "totalBytesRewritten": size, "resource": new}
        return as_json({"kind": "storage#rewriteResponse"} | done)

    def _upload(self, objects, method, query, headers, body):
        kind = query.get("uploadType")
        if kind == "media":
            return as_json(objects.put(query["name"], body, query, {}))
        if kind == "multipart":
            boundary = headers["content-type"].partition("boundary=")[2].strip("\"'").encode()
            parts = body.split(b"--" + boundary)
            first, content = (part.lstrip(b"\r\n") for part in parts[1:3])
            given = json.loads(re.split(rb"\r?\n\r?\n", first, maxsplit=1)[1])
            # The line break before the next boundary is not of the content.
            content = re.split(rb"\r?\n\r?\n", parts[2], maxsplit=1)[1]
            content = content[: -2 if content.endswith(b"\r\n") else -1]
            return as_json(objects.put(given.get("name") or query["name"], content, query, given))
        if "upload_id" not in query:  # A resumable upload begins.
            given = json.loads(body or b"{}")
            name, number = given.get("name") or query["name"], str(next(self._ids))
            objects.check(name, query)
            self._uploads[number] = (name, query, given, bytearray())
            place = f"{self.url}/upload/storage/v1/b/{objects.name}/o?uploadType=resumable"
            return as_json({}, Location=f"{place}&upload_id={number}")
        if method == "DELETE":
            self._uploads.pop(query["upload_id"], None)
            return Answer(499)
        name, conditions, given, content = self._uploads[query["upload_id"]]
        content += body
        if headers.get("content-range", "").endswith("/*"):
            return Answer(308, {"Range": f"bytes=0-{len(content) - 1}"} if content else {})
        del self._uploads[query["upload_id"]]
        return as_json(objects.put(name, bytes(content), conditions, given))


def _download(content, meta, headers):
    more = {
        "x-goog-generation": meta["generation"],
        "x-goog-metageneration": meta["metageneration"],
        "x-goog-hash": f"crc32c={meta['crc32c']},md5={meta['md5Hash']}",
        "ETag": meta["etag"],
        "Content-Type": "application/octet-stream",
    }
    span = re.fullmatch(r"bytes=(\d*)-(\d*)", headers.get("range", ""))
    if span is None:
        return Answer(200, more, content)
    size = len(content)
    first = int(span[1]) if span[1] else max(0, size - int(span[2]))
    last = min(size - 1, int(span[2])) if span[1] and span[2] else size - 1
    if first >= size:
        raise Refused(416, "range not satisfiable")
    more["Content-Range"] = f"bytes {first}-{last}/{size}"
    return Answer(206, more, memoryview(content)[first : last + 1])


class _Connection(socketserver.StreamRequestHandler):
    """Requests of one connection. Parsed here: `http.server` takes twice as long."""

    disable_nagle_algorithm = True
    server: FakeGcs

    def setup(self):
        self.request.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _NUM_SENT)
        super().setup()

    def handle(self):
        while line := self.rfile.readline():
            method, target, _ = line.decode("latin-1").split()
            headers = {}
            while (line := self.rfile.readline()) not in (b"\r\n", b""):
                name, _, value = line.decode("latin-1").partition(":")
                headers[name.lower()] = value.strip()
            answer = self.server.answer(method, target, headers, self._body(headers))
            fields = {"Content-Type": "application/json"} | answer.headers
            fields["Content-Length"] = len(answer.body)
            lines = "".join(f"{name}: {value}\r\n" for name, value in fields.items())
            head = f"HTTP/1.1 {answer.status} -\r\n{lines}\r\n".encode()
            body = memoryview(answer.body if method != "HEAD" else b"")
            self.request.sendall(head + body[:_NUM_SENT])
            for start in range(_NUM_SENT, len(body), _NUM_SENT):
                self.request.sendall(body[start : start + _NUM_SENT])

    def _body(self, headers):
        if "100-continue" in headers.get("expect", ""):
            self.request.sendall(b"HTTP/1.1 100 Continue\r\n\r\n")
        if "chunked" not in headers.get("transfer-encoding", ""):
            return self.rfile.read(int(headers.get("content-length", 0)))
        chunks = []
        while size := int(self.rfile.readline().split(b";")[0], 16):
            chunks.append(self.rfile.read(size))
            self.rfile.readline()
        self.rfile.readline()
        return b"".join(chunks)


@contextlib.contextmanager
def found_by_clients(url):
    """The environment in which clients go to the server at an address, without credentials."""
    names = ("STORAGE_EMULATOR_HOST", "TENSORSTORE_GCS_HTTP_URL", "CLOUD_STORAGE_EMULATOR_ENDPOINT")
    new: dict[str, str] = {}
    for name in names:
        new[name] = url
    # gcsfs would ask over gRPC what kind of bucket it is.
    new["GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT"] = "false"
    old = {name: os.environ.get(name) for name in new}
    os.environ.update(new)
    try:
        yield
    finally:
        for name, value in old.items():
            os.environ.pop(name)
            if value is not None:
                os.environ[name] = value


@functools.cache
def shared_server():
    """The server of this process: its clients look up the address of a server once only."""
    return FakeGcs(0).__enter__()


@contextlib.contextmanager
def server_process(*buckets, latency_seconds=0.0):
    """Runs the server in a process of its own, and yields its address."""
    command = [sys.executable, __file__, f"--latency_seconds={latency_seconds}", *buckets]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
        assert server.stdout is not None
        url = server.stdout.readline().strip()
        try:
            with found_by_clients(url):
                yield url
        finally:
            server.terminate()


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument("--latency_seconds", type=float, default=0)
    parser.add_argument("buckets", nargs="*")
    options = parser.parse_args()
    with FakeGcs(options.port, *options.buckets) as the_server:
        the_server.latency_seconds = options.latency_seconds
        print(the_server.url, flush=True)
        threading.Event().wait()
