"""A server that speaks as much of OpenAI's API as tests need, and misbehaves on request.

Its answer is a function of the request alone, as in a run that is resumed it must be.
"""

import json
import threading
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from hashlib import sha256
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Self

MODEL = "tiny"
QUESTION = "Say OK."
"""What the engine asks by itself, to see whether a server can do anything."""


@dataclass(frozen=True)
class Reply:
    """An answer as it is sent: `content` as JSON, or raw. `hangs_up`: the connection ends in its midst."""

    status: int = 200
    content: dict[str, Any] | bytes = b""
    headers: dict[str, str] = field(default_factory=dict)
    wait_seconds: float = 0.0
    hangs_up: bool = False


@dataclass(frozen=True)
class Call:
    """A request that came: `text` is its prompt's last words, `time` on the monotonic clock."""

    path: str
    body: dict[str, Any]
    key: str
    text: str
    time: float


Behave = Callable[[Call, int], Reply | None]
"""Gets a call and how often its text came before; None is the plain answer."""


class Endpoint:
    """The server, on a port of its own that a second one may take over. A context manager."""

    def __init__(self, behave: Behave | None = None, *, key: str | None = None, port: int = 0) -> None:
        self.behave: Behave = behave or (lambda call, before: None)
        self.key = key
        self.max_model_len = 4096
        self.calls: list[Call] = []
        self._lock = threading.Lock()
        self._server = _Server(("127.0.0.1", port), _Handler)
        self._server.endpoint = self
        self.port = self._server.server_address[1]
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/v1"

    @property
    def texts(self) -> Counter[str]:
        """How often each prompt was asked, without the engine's own question."""
        return Counter(call.text for call in self.calls if call.text != QUESTION)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self.stop()

    def stop(self) -> None:
        if self._thread.is_alive():
            self._server.shutdown()
            self._server.server_close()
            self._thread.join()

    def answer(self, path: str, body: dict[str, Any], key: str) -> Reply:
        call = Call(path, body, key, read_text(body), time.monotonic())
        with self._lock:
            before = sum(other.text == call.text for other in self.calls)
            self.calls.append(call)
        if self.key is not None and key != self.key:
            return fail(401, f"Incorrect API key provided: {key}")
        if body["model"] != MODEL:
            return fail(404, "no such model")
        return self.behave(call, before) or complete(call)


def read_text(body: dict[str, Any]) -> str:
    return str(body["messages"][-1]["content"] if "messages" in body else body["prompt"])


def complete(call: Call, **changes: Any) -> Reply:
    """Return the plain answer to `call`; `changes` are of its choice."""
    telling = json.dumps([call.body.get(name) for name in ("messages", "prompt", "seed", "temperature")])
    text = "Answer " + sha256(telling.encode()).hexdigest()[:12]
    is_chat = "messages" in call.body
    said = {"message": {"role": "assistant", "content": text}} if is_chat else {"text": text}
    choice = {"index": 0, "finish_reason": "stop", **said, **changes}
    usage = {"prompt_tokens": len(telling), "completion_tokens": 3, "total_tokens": len(telling) + 3}
    return Reply(content={"id": "x", "object": "chat.completion", "choices": [choice], "usage": usage})


def fail(status: int, message: str, **more: Any) -> Reply:
    return Reply(status=status, content={"error": {"message": message, "type": "test", **more}})


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    allow_reuse_address = True
    request_queue_size = 128
    endpoint: Endpoint


class _Handler(BaseHTTPRequestHandler):
    server: _Server

    def do_GET(self) -> None:
        endpoint = self.server.endpoint
        if endpoint.key is not None and self._key != endpoint.key:
            self._send(fail(401, f"Incorrect API key provided: {self._key}"))
        elif self.path == "/v1/models":
            length = endpoint.max_model_len
            model = {"id": MODEL, "object": "model", "owned_by": "tests", "max_model_len": length}
            self._send(Reply(content={"object": "list", "data": [model]}))
        else:
            self._send(fail(404, "no such address"))

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["content-length"])))
        reply = self.server.endpoint.answer(self.path, body, self._key)
        time.sleep(reply.wait_seconds)
        self._send(reply)

    @property
    def _key(self) -> str:
        return self.headers.get("authorization", "").removeprefix("Bearer ")

    def _send(self, reply: Reply) -> None:
        content = reply.content if isinstance(reply.content, bytes) else json.dumps(reply.content).encode()
        try:
            self.send_response(reply.status)
            for name, value in {"content-type": "application/json", **reply.headers}.items():
                self.send_header(name, value)
            self.send_header("content-length", str(len(content)))
            self.end_headers()
            if reply.hangs_up:
                self.wfile.write(content[: len(content) // 2])
                self.close_connection = True
            else:
                self.wfile.write(content)
        except (BrokenPipeError, ConnectionResetError):  # Whoever asked is gone.
            self.close_connection = True

    def log_message(self, format: str, *args: Any) -> None:
        """Say nothing."""
