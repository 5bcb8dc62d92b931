"""vLLM's own server on loopback as an endpoint: killed, started again, and with a driver that is killed."""

import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from conftest import NEEDS_VLLM, Command, command_of, make_environment, read_bytes_of_data, write_jsonl

from synthia_batch import open_run
from synthia_batch.models.locate import locate_model

pytestmark = [pytest.mark.engine, NEEDS_VLLM]
ROWS = 40
MAX_TOKENS = 24


def find_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextmanager
def serve(port: int, log: Path) -> Iterator[subprocess.Popen[bytes]]:
    """Run vLLM's server with the embedded model until the end of the block; its whole group is killed."""
    model = str(locate_model("demo", None).path)
    command = [
        sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model", model,
        "--served-model-name", "demo", "--port", str(port), "--host", "127.0.0.1", "--max-model-len", "512",
        "--enforce-eager", "--no-enable-prefix-caching", "--max-num-seqs", "8",
        "--no-enable-chunked-prefill", "--max-num-batched-tokens", "2048",
        "--kv-cache-memory-bytes", "268435456",
    ]  # fmt: skip
    environment = make_environment(VLLM_NO_USAGE_STATS="1", HF_HUB_OFFLINE="1", VLLM_LOGGING_LEVEL="WARNING")
    with log.open("ab") as words:
        server = subprocess.Popen(
            command, env=environment, stdout=words, stderr=words, start_new_session=True
        )
    try:
        yield server
    finally:
        kill(server)


def kill(server: subprocess.Popen[bytes]) -> None:
    if server.poll() is None:
        os.killpg(server.pid, signal.SIGKILL)
    server.wait()


def wait_for(port: int, server: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + 240
    while time.monotonic() < deadline:
        assert server.poll() is None, log.read_text(errors="replace")[-3000:]
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=2):
                return
        except OSError:
            time.sleep(0.5)
    raise AssertionError(f"the server did not start: {log.read_text(errors='replace')[-3000:]}")


def read_rows(directory: Path) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = pq.read_table(directory / "data").to_pylist()
    return rows


@pytest.mark.timeout(900)
def test_a_real_server_is_asked_through_kills_of_the_driver_and_of_itself(
    synthia: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    port, log = find_port(), tmp_path / "server.log"
    questions = [{"question": f"What is {n} squared, and who first said so?"} for n in range(ROWS)]
    questions.append({"question": "far too long " * 400})
    job = (
        write_jsonl(tmp_path / "q.jsonl", questions), "--engine", "openai", "--base-url",
        f"http://127.0.0.1:{port}/v1", "-m", "demo", "--determinism", "fast", "-s", "Be brief.",
        "--max-tokens", MAX_TOKENS, "--top-k", "40", "--set", "engine.extra_sampling=true",
        "--set", "engine.concurrency=4", "-o", "out",
    )  # fmt: skip

    with serve(port, log) as server:
        wait_for(port, server, log)
        kill_driver(job, tmp_path, finished=8)
        before = open_run(tmp_path / "out").statistics()
        assert 8 <= before.finished < ROWS
        driver = subprocess.Popen(
            command_of("run", *job, "--json"),
            cwd=tmp_path, env=make_environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip
        wait_until(tmp_path / "out", before.finished + 6, driver)
        kill(server)
    with serve(port, log):  # Nobody tells the driver: it waits.
        told, words = driver.communicate(timeout=400)
        assert driver.returncode == 0, words
        assert f'"made_now": {ROWS + 1 - before.finished - before.failed}' in told

        rows = read_rows(tmp_path / "out")
        assert [row["row_index"] for row in rows] == list(range(ROWS))
        assert all(row["response"] and 1 <= row["completion_tokens"] <= MAX_TOKENS for row in rows)
        assert {row["finish_reason"] for row in rows} <= {"stop", "length"}
        (failed,) = pq.read_table(tmp_path / "out" / "failed").to_pylist()
        assert failed["code"] == "prompt_too_long"
        assert "maximum context length is 512" in failed["message"]
        assert "made twice" not in synthia("verify", "out").stdout

        # One at a time the server answers alike, so a whole run gives the same bytes twice.
        alone = (*job[:-3], "engine.concurrency=1", "--limit", "6", "-o")
        bytes_of = []
        for name in ("one", "two"):
            done = synthia("run", *alone, name, timeout=300)
            assert done.returncode == 0, done.stderr
            bytes_of.append(read_bytes_of_data(tmp_path / name))
        assert bytes_of[0] == bytes_of[1]
        check_completions_and_turns(synthia, job, tmp_path)
        check_flags(synthia, alone, tmp_path)


def check_flags(synthia: Command, alone: tuple[Any, ...], directory: Path) -> None:
    """Answers of a real model, flagged: the second of two greedy ones repeats the first."""
    asked = ("--temperature", "0", "-n", "2", "--flag", "repetition,empty,refusal,language,duplicate")
    done = synthia("run", *alone, "flagged", *asked, timeout=300)
    assert done.returncode == 0, done.stderr
    rows = read_rows(directory / "flagged")
    assert all("duplicate" in row["flags"] for row in rows if row["sample_index"] == 1)
    assert not any("empty" in row["flags"] for row in rows)
    dropped = synthia("run", *alone, "dropped", *asked, "--drop-flagged", timeout=300)
    assert dropped.returncode == 0, dropped.stderr
    kept = [row["response"] for row in rows if not row["flags"]]
    assert [row["response"] for row in read_rows(directory / "dropped")] == kept


def check_completions_and_turns(synthia: Command, job: tuple[Any, ...], directory: Path) -> None:
    """The other API, and a conversation, at the server that runs."""
    turns = write_jsonl(directory / "t.jsonl", [{"turns": ["Name a colour.", "And another?"]}])
    shared = job[1:-1]
    played = synthia("run", turns, *shared, "played", timeout=300)
    assert played.returncode == 0, played.stderr
    (row,) = read_rows(directory / "played")
    roles = ["system", "user", "assistant", "user", "assistant"]
    assert [turn["role"] for turn in row["messages"]] == roles
    fitting = synthia("run", job[0], *shared, "fitting", "--regex", "(red|green|blue)", "--limit", "4")
    assert fitting.returncode == 0, fitting.stderr
    assert {row["response"] for row in read_rows(directory / "fitting")} <= {"red", "green", "blue"}
    written = synthia("run", job[0], *shared, "written", "--set", "prompt_format=synthia", "--limit", "4")
    assert written.returncode == 0, written.stderr
    rows = read_rows(directory / "written")
    # The server has tokenized exactly the cards' text: SmolLM2 adds no start token.
    assert all("USER:" not in row["response"] for row in rows)
    assert len({row["prompt_tokens"] for row in rows}) == 1


def kill_driver(job: tuple[Any, ...], directory: Path, finished: int) -> None:
    driver = subprocess.Popen(
        command_of("run", *job), cwd=directory, env=make_environment(), stderr=subprocess.DEVNULL
    )
    wait_until(directory / "out", finished, driver)
    driver.send_signal(signal.SIGKILL)
    driver.wait()


def wait_until(directory: Path, finished: int, driver: subprocess.Popen[Any]) -> None:
    deadline = time.monotonic() + 200
    while time.monotonic() < deadline:
        assert driver.poll() is None, driver.stderr and driver.stderr.read()
        has_begun = (directory / ".synthia" / "plan.json").exists()
        if has_begun and open_run(directory).statistics().finished >= finished:
            return
        time.sleep(0.1)
    raise AssertionError("the driver did not get so far")
