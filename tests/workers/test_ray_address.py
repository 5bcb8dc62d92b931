"""Addresses of clusters that are not there, not Ray's, or not of a kind that a job can join."""

import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from conftest import Command, write_jsonl

from synthia_batch.errors import PoolFailed, UsageError
from synthia_batch.workers.pools.ray_address import check_form, probe_head

SECONDS = 10
"""Ray itself gives up after 40 s, so this tells the two apart also on a busy machine."""


@contextmanager
def listening(answer: Callable[[socket.socket], None] | None = None) -> Iterator[str]:
    """Listen on loopback; give each connection to `answer`, or leave it without a word."""
    with socket.create_server(("127.0.0.1", 0)) as server:

        def serve() -> None:
            while True:
                try:
                    connection, _ = server.accept()
                except OSError:
                    return
                with connection:
                    answer(connection)  # type: ignore[misc]

        if answer is not None:
            threading.Thread(target=serve, daemon=True).start()
        yield f"127.0.0.1:{server.getsockname()[1]}"


def find_closed_port() -> str:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return f"127.0.0.1:{server.getsockname()[1]}"


def answer_as_a_web_server(connection: socket.socket) -> None:
    connection.recv(100)
    connection.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n")


def test_a_closed_port_is_told_at_once() -> None:
    address = find_closed_port()
    with pytest.raises(PoolFailed, match=f"no Ray cluster at {address}: .*refused"):
        probe_head(address)


def test_a_port_that_accepts_and_says_nothing_is_told_in_time() -> None:
    with listening() as address, pytest.raises(PoolFailed, match=r"nothing answered in 0\.5 s"):
        probe_head(address, timeout_seconds=0.5)


@pytest.mark.parametrize("answer", [answer_as_a_web_server, lambda connection: None])
def test_a_port_that_speaks_something_else_is_no_head(answer: Callable[[socket.socket], None]) -> None:
    with listening(answer) as address, pytest.raises(PoolFailed, match=r"no Ray head|reset"):
        probe_head(address)


def test_a_name_that_nobody_has_is_named() -> None:
    with pytest.raises(PoolFailed, match=r"nowhere\.invalid:6379"):
        probe_head("nowhere.invalid:6379")


def test_ray_client_is_refused_with_what_to_do_instead() -> None:
    with pytest.raises(UsageError, match="ray job submit"):
        check_form("ray://head:10001")
    with pytest.raises(UsageError, match="HOST:6379"):
        check_form("http://head:8265")
    with pytest.raises(UsageError, match="head:6379"):
        check_form("head")
    check_form("head:6379")
    check_form("auto")


@pytest.mark.parametrize("kind", ["closed", "mute"])
def test_a_run_on_a_cluster_that_is_not_there_ends_in_seconds(
    synthia: Command, tmp_path: Path, kind: str
) -> None:
    source = write_jsonl(tmp_path / "q.jsonl", [{"prompt": "Hi"}])
    with listening() as mute:
        address = mute if kind == "mute" else find_closed_port()
        scripted = ("--engine", "scripted", "-o", "out")
        whole = time.monotonic()
        assert synthia("run", source, *scripted, "--pool", "local", "-o", "other").returncode == 0
        start = time.monotonic()
        done = synthia("run", source, *scripted, "--ray-address", address, timeout=100)
    assert done.returncode == 69, done.stderr
    assert f"no Ray cluster at {address}" in done.stderr
    assert "Traceback" not in done.stderr
    assert time.monotonic() - start < (start - whole) + SECONDS + 10, "the command, Ray's import, the probe"


def test_ray_client_is_a_usage_error_of_a_run(synthia: Command, tmp_path: Path) -> None:
    source = write_jsonl(tmp_path / "q.jsonl", [{"prompt": "Hi"}])
    done = synthia("run", source, "--engine", "scripted", "--ray-address", "ray://127.0.0.1:10001")
    assert done.returncode == 2
    assert "Ray Client" in done.stderr
