"""A run with its output in gs://: conditions by generation, on a server in the shape of Google's XML API.

The server is ours, and shows only that what differs from S3 is used as it is documented.
"""

import hashlib
import json
import shutil
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

import pytest
from conftest import Command, read_bytes_of_data, read_call_log, write_jsonl

URL = "gs://bucket/runs/a"
RUN = ("run", "q.jsonl", "--engine", "scripted", "--pool", "local", "-q", "--set", "engine.fail_every=700")
NOTES = "x-goog-meta-"
MODIFIED = "Sat, 21 Nov 2026 00:00:00 GMT"


@dataclass(slots=True)
class Stored:
    generation: int
    content: bytes
    metadata: dict[str, str]


@dataclass(slots=True)
class Bucket:
    objects: dict[str, Stored] = field(default_factory=dict)
    generation: int = 10**15
    heeds_conditions: bool = True
    mutex: threading.Lock = field(default_factory=threading.Lock)


class Server(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.bucket = Bucket()

    @property
    def environment(self) -> dict[str, str]:
        address = f"http://127.0.0.1:{self.server_address[1]}"
        key = {"disable_oauth": True, "client_email": "", "private_key": "", "private_key_id": ""}
        return {"GOOGLE_BASE_URL": address, "GOOGLE_SERVICE_ACCOUNT_KEY": json.dumps(key)}

    def read_dataset(self) -> dict[str, bytes]:
        found = {key.removeprefix("runs/a/"): stored.content for key, stored in self.bucket.objects.items()}
        return {key: content for key, content in found.items() if not key.startswith(".")}


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Server

    def _serve(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        address = urlsplit(self.path)
        key = unquote(address.path).removeprefix("/bucket").removeprefix("/")
        bucket = self.server.bucket
        with bucket.mutex:
            if self.command == "PUT":
                self._put(bucket, key, body)
            elif self.command == "DELETE":
                self._answer(204 if bucket.objects.pop(key, None) else 404, b"", {})
            elif not key:
                self._list(bucket, parse_qs(address.query).get("prefix", [""])[0])
            elif key in bucket.objects:
                self._answer(200, bucket.objects[key].content, _head(bucket.objects[key]))
            else:
                self._answer(404, b"<Error><Code>NoSuchKey</Code></Error>", {})

    do_GET = do_HEAD = do_PUT = do_DELETE = _serve

    def _put(self, bucket: Bucket, key: str, body: bytes) -> None:
        wanted = self.headers.get("x-goog-if-generation-match")
        there = bucket.objects[key].generation if key in bucket.objects else 0
        if bucket.heeds_conditions and wanted is not None and int(wanted) != there:
            self._answer(412, b"<Error><Code>PreconditionFailed</Code></Error>", {})
            return
        bucket.generation += 1
        metadata = {name: self.headers[name] for name in self.headers if name.lower().startswith(NOTES)}
        bucket.objects[key] = Stored(bucket.generation, body, metadata)
        self._answer(200, b"", _head(bucket.objects[key]))

    def _list(self, bucket: Bucket, prefix: str) -> None:
        entries = "".join(
            f"<Contents><Key>{key}</Key><Size>{len(stored.content)}</Size><ETag>x</ETag>"
            "<LastModified>2026-11-21T00:00:00.000Z</LastModified></Contents>"
            for key, stored in bucket.objects.items()
            if key.startswith(prefix)
        )
        self._answer(200, f"<ListBucketResult>{entries}</ListBucketResult>".encode(), {})

    def _answer(self, status: int, content: bytes, headers: dict[str, str]) -> None:
        self.send_response_only(status)
        for name, value in {**headers, "Content-Length": str(len(content))}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def log_message(self, *arguments: Any) -> None:
        pass


def _head(stored: Stored) -> dict[str, str]:
    return {
        **stored.metadata,
        "ETag": f'"{hashlib.md5(stored.content).hexdigest()}"',
        "x-goog-generation": str(stored.generation),
        "Last-Modified": MODIFIED,
    }


@pytest.fixture
def server() -> Iterator[Server]:
    with Server() as found:
        threading.Thread(target=found.serve_forever, args=(0.02,), daemon=True).start()
        yield found
        found.shutdown()


def test_a_run_is_put_restored_and_retried(server: Server, synthia: Command, tmp_path: Path) -> None:
    write_jsonl(tmp_path / "q.jsonl", [{"question": f"What is {n} squared?"} for n in range(1200)])
    log = tmp_path / "calls"
    settings = ("--set", "engine.fail_while_missing=mended", "--set", f"engine.call_log={log}")
    command = (*RUN, *settings, "-o", URL, "--state", "state")
    done = synthia(*command, **server.environment)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == URL
    assert server.read_dataset() == read_bytes_of_data(tmp_path / "state")
    shutil.rmtree(tmp_path / "state")
    log.unlink()
    done = synthia(*command, **server.environment)
    assert done.returncode == 0, done.stderr
    assert "restored 2 of 2 shards" in done.stderr
    assert not read_call_log(log)
    (tmp_path / "mended").touch()
    done = synthia("retry", "state", "--trust", "-q", **server.environment)
    assert done.returncode == 0, done.stderr
    assert server.read_dataset() == read_bytes_of_data(tmp_path / "state")
    assert not [key for key in server.read_dataset() if key.startswith("failed/")]


def test_a_store_that_ignores_generations_is_not_written_to(
    server: Server, synthia: Command, tmp_path: Path
) -> None:
    server.bucket.heeds_conditions = False
    write_jsonl(tmp_path / "q.jsonl", [{"question": "Why?"}])
    done = synthia(*RUN, "-o", URL, **server.environment)
    assert done.returncode == 2, done.stderr
    assert "this store ignores If-None-Match or If-Match" in done.stderr
    assert not server.read_dataset()
