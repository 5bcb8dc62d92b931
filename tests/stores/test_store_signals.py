"""A signal ends a run whose store accepts connections and never answers, at its start as at its end."""

import signal
import socket
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
from conftest import command_of, make_environment, write_jsonl

from synthia_batch.errors import StoreUnreachable
from synthia_batch.storage.remote import object_store
from synthia_batch.storage.remote.object_store import ObjectStore, Patience

STORAGE = 74
FLAGS = ("--engine", "scripted", "--pool", "local", "-o", "s3://bucket/night", "--state", "state")
MINUTES = ("--set", "store.request_timeout=20m", "--set", "store.patience=40m")
"""Without the signal, the run would wait longer than the test may take."""


class SilentServer:
    """Accepts connections on `port` and answers nothing. `is_asked` is set with the first request."""

    def __init__(self) -> None:
        self._socket = socket.create_server(("127.0.0.1", 0))
        self.port = self._socket.getsockname()[1]
        self.is_asked = threading.Event()
        self._open: list[socket.socket] = []
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        while True:
            try:
                connection, _ = self._socket.accept()
            except OSError:
                return
            self._open.append(connection)
            connection.recv(1)
            self.is_asked.set()

    def close(self) -> None:
        for connection in (self._socket, *self._open):
            connection.close()


@pytest.fixture
def silent() -> Iterator[SilentServer]:
    server = SilentServer()
    yield server
    server.close()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_a_signal_ends_a_run_that_waits_for_a_silent_store(
    silent: SilentServer, tmp_path: Path, number: signal.Signals
) -> None:
    write_jsonl(tmp_path / "q.jsonl", [{"question": "Why?"}])
    environment = make_environment(
        AWS_ACCESS_KEY_ID="id",
        AWS_SECRET_ACCESS_KEY="key",
        AWS_REGION="us-east-1",
        AWS_ENDPOINT_URL=f"http://127.0.0.1:{silent.port}",
    )
    command = command_of("run", "q.jsonl", *FLAGS, *MINUTES)
    with subprocess.Popen(command, cwd=tmp_path, env=environment, stderr=subprocess.PIPE, text=True) as run:
        assert silent.is_asked.wait(60)
        run.send_signal(number)
        _, told = run.communicate(timeout=120)
    assert run.returncode == STORAGE, told
    assert "could not read s3://bucket/night/.synthia/plan.json, stopped on request: " in told
    assert "run the same command again" in told
    assert "Traceback" not in told


def test_a_store_that_was_asked_nothing_is_not_silent(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr(object_store, "time", SimpleNamespace(monotonic=lambda: now[0]))
    store = ObjectStore("s3://bucket", None, Patience(request_seconds=1, seconds=60))  # type: ignore[arg-type]
    store.signalled_seconds = lambda: 60.0
    now[0] += 60
    assert store._try("read", "key", lambda: store.is_given_up) is False

    def say_nothing() -> None:
        now[0] += 6
        raise OSError("no answer")

    with pytest.raises(StoreUnreachable, match="stopped on request: no answer"):
        store._try("read", "key", say_nothing)
    assert store.is_given_up
    assert store._try("read", "key", lambda: "back") == "back"
    assert not store.is_given_up
