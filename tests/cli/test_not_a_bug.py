"""What a user or a machine gets wrong is an error with a code of its own, and never a traceback."""

import os
import shutil
import socket
import subprocess
import threading
import time
from pathlib import Path

import pytest
from conftest import Command, command_of, make_environment, write_jsonl

from synthia_batch.inputs.remote.fetch import name_copy

SCRIPTED = ("--engine", "scripted", "--pool", "local")
LONG = "n" * 300
STORAGE = 74


@pytest.fixture
def questions(tmp_path: Path) -> Path:
    write_jsonl(tmp_path / "q.jsonl", [{"question": f"What is {n} squared?"} for n in range(40)])
    return Path("q.jsonl")


@pytest.mark.parametrize(
    "arguments",
    [
        ("run", "q.jsonl", *SCRIPTED, "-o", LONG),
        ("run", f"{LONG}.jsonl", *SCRIPTED),
        ("run", "q.jsonl", *SCRIPTED, "--set", f"name={LONG}"),
        ("run", "q.jsonl", *SCRIPTED, "-m", LONG),
        ("run", "q.jsonl", *SCRIPTED, "--prompt-template", LONG),
        ("run", "--job", f"{LONG}.yaml"),
        ("status", LONG),
        ("report", LONG),
        ("run", "http://[h/a", *SCRIPTED),
    ],
    ids=lambda arguments: " ".join(arguments).replace(LONG, "LONG"),
)
def test_a_name_that_no_file_system_holds_is_refused(
    questions: Path, synthia: Command, tmp_path: Path, arguments: tuple[str, ...]
) -> None:
    done = synthia(*arguments)
    assert done.returncode == 2, done.stderr
    assert "bug" not in done.stderr
    assert "Traceback" not in done.stderr
    assert "error: " in done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["q.jsonl"]


def test_the_longest_name_of_an_input_names_a_run(synthia: Command, tmp_path: Path) -> None:
    write_jsonl(tmp_path / f"{'n' * 249}.jsonl", [{"question": "Why?"}])
    done = synthia("run", f"{'n' * 249}.jsonl", *SCRIPTED)
    assert done.returncode == 0, done.stderr
    assert len(Path(done.stdout.strip()).name) == 255


@pytest.mark.parametrize("does", ["remove", "move", "remove journals"])
def test_a_run_whose_directory_is_moved_or_removed_says_so(
    questions: Path, tmp_path: Path, does: str
) -> None:
    slow = ("--set", "engine.latency_ms=300", "--set", "engine.max_num_seqs=4")
    command = command_of("run", questions, *SCRIPTED, *slow, "-o", "out")
    with subprocess.Popen(
        command, cwd=tmp_path, env=make_environment(), stderr=subprocess.PIPE, text=True
    ) as run:
        journals = tmp_path / "out/.synthia/journal"
        while not any(path.stat().st_size > 200 for path in journals.glob("*.wal")):
            assert run.poll() is None
            time.sleep(0.05)
        if does == "move":
            os.rename(tmp_path / "out", tmp_path / "elsewhere")
        else:
            shutil.rmtree(tmp_path / "out" if does == "remove" else journals)
        _, told = run.communicate(timeout=100)
    assert run.returncode == STORAGE, told
    assert "error: out was moved or removed while the run wrote to it" in told
    assert "Traceback" not in told


@pytest.mark.parametrize(
    ("url", "name"),
    [
        ("http://h/..", "rows"),
        ("http://h/.", "rows"),
        ("http://h/", "rows"),
        ("http://h/a.jsonl", "a.jsonl"),
        (f"http://h/{LONG}.jsonl", f"{'n' * 249}.jsonl"),
    ],
)
def test_a_copy_of_an_address_has_a_name_of_its_own(url: str, name: str) -> None:
    assert name_copy(url) == name


def test_an_address_that_ends_in_dots_is_read(synthia: Command) -> None:
    content = b'{"question": "Why?"}\n'
    with socket.create_server(("127.0.0.1", 0)) as server:
        threading.Thread(target=answer, args=(server, content), daemon=True).start()
        done = synthia("validate", f"http://127.0.0.1:{server.getsockname()[1]}/..", *SCRIPTED)
    assert done.returncode == 0, done.stderr
    assert "1 row, no faults" in done.stdout


def answer(server: socket.socket, content: bytes) -> None:
    while True:
        try:
            connection, _ = server.accept()
        except OSError:
            return
        with connection:
            connection.recv(65536)
            head = (
                f"HTTP/1.1 200 OK\r\nContent-Length: {len(content)}\r\nETag: 1\r\nConnection: close\r\n\r\n"
            )
            connection.sendall(head.encode() + content)
