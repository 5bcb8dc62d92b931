"""A real S3 server on loopback, a proxy in front of it that fails on request, and a small job for both."""

import http.client
import json
import os
import re
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from harness import SmallJob, WarmProcess

START_SECONDS = 60
BUCKET = "night"
PREFIX = "runs/a"
URL = f"s3://{BUCKET}/{PREFIX}"


@dataclass(frozen=True, slots=True)
class Seen:
    """A request as the proxy saw it. `number` counts from 1."""

    number: int
    method: str
    key: str
    conditions: dict[str, str]

    @property
    def is_part(self) -> bool:
        return self.method == "PUT" and self.key.endswith(".parquet")


@dataclass(slots=True)
class Fault:
    """What is done to the requests that `hits` takes, `times` times; then nothing more.

    `status`: answer so, and do not ask the server. `after`: ask the server, and let its answer be lost:
    "reset" the connection, be "silent" for ever, or answer with a "500". `before`: "reset" without asking.
    `call` is called before anything else, `call_after` once the server has answered. `ignores` drops the
    conditions. `pause_seconds` is waited first.
    """

    hits: Callable[[Seen], bool]
    times: int = 1
    status: int | None = None
    body: bytes = b""
    before: str | None = None
    after: str | None = None
    call: Callable[[], None] | None = None
    call_after: Callable[[], None] | None = None
    ignores: bool = False
    pause_seconds: float = 0.0


class Proxy(ThreadingHTTPServer):
    """Passes every request on to the server on `backend`, but for those that a fault takes."""

    daemon_threads = True
    request_queue_size = 64

    def __init__(self, backend: int) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.backend = backend
        self.seen: list[Seen] = []
        self.faults: list[Fault] = []
        self.mutex = threading.Lock()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

    def note(self, method: str, path: str, headers: Any) -> tuple[Seen, Fault | None]:
        conditions = {name: headers[name] for name in ("if-match", "if-none-match") if headers[name]}
        key = urllib.parse.unquote(path).partition("?")[0].removeprefix(f"/{BUCKET}/{PREFIX}/")
        with self.mutex:
            seen = Seen(len(self.seen) + 1, method, key, conditions)
            self.seen.append(seen)
            fault = next((fault for fault in self.faults if fault.times > 0 and fault.hits(seen)), None)
            if fault is not None:
                fault.times -= 1
            return seen, fault

    def reset(self) -> None:
        self.seen.clear()
        self.faults.clear()

    def handle_error(self, request: Any, client_address: Any) -> None:
        pass  # A client that was killed.


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Proxy

    def _pass_on(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        _, fault = self.server.note(self.command, self.path, self.headers)
        fault = fault or Fault(lambda seen: False)
        if fault.call is not None:
            fault.call()
        time.sleep(fault.pause_seconds)
        if fault.before == "reset":
            self._reset()
            return
        if fault.status is not None:
            self._answer(fault.status, {}, fault.body)
            return
        dropped = {"if-match", "if-none-match"} if fault.ignores else set()
        status, headers, content = self._ask(body, dropped)
        if fault.call_after is not None:
            fault.call_after()
        if fault.after == "reset":
            self._reset()
        elif fault.after == "silent":
            time.sleep(3)  # Longer than any request is waited for here.
            self._reset()
        elif fault.after == "500":
            self._answer(500, {}, b"<Error><Code>InternalError</Code></Error>")
        else:
            self._answer(status, headers, content)

    do_GET = do_PUT = do_HEAD = do_POST = do_DELETE = _pass_on

    def _ask(self, body: bytes, dropped: set[str]) -> tuple[int, dict[str, str], bytes]:
        backend = http.client.HTTPConnection("127.0.0.1", self.server.backend, timeout=30)
        headers = {name: value for name, value in self.headers.items() if name.lower() not in dropped}
        backend.request(self.command, self.path, body=body, headers=headers)
        answer = backend.getresponse()
        content = answer.read()
        backend.close()
        return answer.status, dict(answer.getheaders()), content

    def _answer(self, status: int, headers: dict[str, str], content: bytes) -> None:
        self.send_response_only(status)
        for name, value in headers.items():
            if name.lower() not in ("transfer-encoding", "connection", "content-length"):
                self.send_header(name, value)
        length = headers.get("content-length", headers.get("Content-Length"))
        self.send_header("Content-Length", length if self.command == "HEAD" and length else str(len(content)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def _reset(self) -> None:
        # An RST in place of an orderly end.
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.close_connection = True

    def log_message(self, *arguments: Any) -> None:
        pass


@dataclass(slots=True)
class S3:
    """The server with its proxy. The environment that leads a client to the proxy is `environment`."""

    port: int
    proxy: Proxy

    @property
    def environment(self) -> dict[str, str]:
        return {
            "AWS_ENDPOINT_URL": self.proxy.url,
            "AWS_ACCESS_KEY_ID": "test",
            "AWS_SECRET_ACCESS_KEY": "test",
            "AWS_REGION": "us-east-1",
        }

    def ask(self, method: str, path: str, content: bytes | None = None) -> bytes:
        """Send a request past the proxy."""
        url = f"http://127.0.0.1:{self.port}/{urllib.parse.quote(path, safe='/?=&')}"
        request = urllib.request.Request(url, data=content, method=method)
        with urllib.request.urlopen(request, timeout=30) as answer:
            return answer.read()

    def list(self) -> list[str]:
        listing = self.ask("GET", f"{BUCKET}?list-type=2&prefix={PREFIX}/").decode()
        return sorted(key.removeprefix(f"{PREFIX}/") for key in re.findall("<Key>(.*?)</Key>", listing))

    def read(self, key: str) -> bytes:
        return self.ask("GET", f"{BUCKET}/{PREFIX}/{key}")

    def put(self, key: str, content: bytes) -> None:
        self.ask("PUT", f"{BUCKET}/{PREFIX}/{key}", content)

    def read_dataset(self) -> dict[str, bytes]:
        """Every object of the dataset proper: what `read_bytes_of_data` reads of a directory."""
        return {
            key: self.read(key) for key in self.list() if not key.startswith(".") and key != "report.html"
        }

    def empty(self) -> None:
        for key in self.list():
            self.ask("DELETE", f"{BUCKET}/{PREFIX}/{key}")
        self.proxy.reset()


@contextmanager
def serve_s3(scratch: Path) -> Iterator[S3]:
    """Start the server and its proxy, with an empty bucket."""
    port = _find_port()
    log = (scratch / "ministack.log").open("wb")
    environment = {
        **os.environ,
        "GATEWAY_PORT": str(port),
        "BIND_HOST": "127.0.0.1",
        "SERVICES": "s3",
        "LOG_LEVEL": "ERROR",
        "TMPDIR": str(scratch),
    }
    process = subprocess.Popen(
        [sys.executable, "-m", "ministack"], env=environment, stdout=log, stderr=log, cwd=scratch
    )
    proxy = Proxy(port)
    threading.Thread(target=proxy.serve_forever, args=(0.02,), daemon=True).start()
    try:
        s3 = S3(port, proxy)
        _wait_for(process, port)
        s3.ask("PUT", BUCKET)
        yield s3
    finally:
        proxy.shutdown()
        proxy.server_close()
        process.kill()
        process.wait()
        log.close()


def _find_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


def _wait_for(process: subprocess.Popen[bytes], port: int) -> None:
    end = time.monotonic() + START_SECONDS
    while time.monotonic() < end:
        assert process.poll() is None, "the S3 server ended"
        try:
            socket.create_connection(("127.0.0.1", port), 1).close()
            return
        except OSError:
            time.sleep(0.05)
    raise AssertionError("the S3 server did not start")


@dataclass(slots=True)
class StoreJob(SmallJob):
    """The small job with its output in the store. `state` is its state directory."""

    state: str = "state"
    settings: dict[str, Any] = field(default_factory=dict)

    @property
    def run_directory(self) -> Path:
        return self.directory / self.state

    @property
    def arguments(self) -> tuple[str, ...]:
        values = {
            "store.request_timeout": "1s",
            "store.patience": "20s",
            "store.lease": "30s",
            **self.settings,
        }
        flags = [flag for name, value in values.items() for flag in ("--set", f"{name}={value}")]
        # Not super(): a dataclass with slots is another class than the one that super() means.
        return (*SmallJob.arguments.fget(self)[:-2], *flags, "-o", URL, "--state", self.state)  # type: ignore[attr-defined]

    def kill(self) -> None:
        """End the run that goes on, as kill -9 does."""
        for pid in list_children(self.warm):
            os.kill(pid, signal.SIGKILL)


def list_children(warm: WarmProcess) -> list[int]:
    pid = warm._process.pid
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def read_lease(s3: S3) -> dict[str, Any]:
    return dict(json.loads(s3.read(".synthia/lease.json")))
