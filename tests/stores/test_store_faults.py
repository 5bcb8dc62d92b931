"""A store that fails: every fault that the proxy knows, and what becomes of the run and of its objects."""

import os
import signal
import socket
import subprocess
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from conftest import command_of, make_environment, read_call_log, run_command, write_jsonl
from harness import WarmProcess
from s3 import S3, URL, Fault, Seen, read_lease, serve_s3

ROWS = 2200
SHARDS = 3
PART = "data/train-00001-of-00003.parquet"
STORAGE = 74
REFUSED = 4
FLAGS = ("--engine", "scripted", "--pool", "local", "-q")
SETTINGS = {
    "store.request_timeout": "1s",
    "store.patience": "15s",
    "engine.fail_every": 700,
    "engine.max_num_seqs": 64,
}


@pytest.fixture(scope="module")
def s3(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3]:
    with serve_s3(tmp_path_factory.mktemp("s3")) as server:
        yield server


@pytest.fixture
def run(s3: S3, warm: WarmProcess, tmp_path: Path) -> Iterator["Runner"]:
    s3.empty()
    write_jsonl(tmp_path / "q.jsonl", [{"question": f"What is {n} squared?"} for n in range(ROWS)])
    yield Runner(s3, warm, tmp_path)
    s3.empty()


@pytest.fixture(scope="module")
def expected(s3: S3, warm: WarmProcess, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """What an undisturbed run puts into the store."""
    s3.empty()
    directory = tmp_path_factory.mktemp("undisturbed")
    write_jsonl(directory / "q.jsonl", [{"question": f"What is {n} squared?"} for n in range(ROWS)])
    runner = Runner(s3, warm, directory)
    done = runner()
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == URL
    found = s3.read_dataset()
    assert len(found) == 2 * SHARDS + 2
    return found


class Runner:
    """Runs the job in `directory`, in a real process, to the store behind the proxy."""

    def __init__(self, s3: S3, warm: WarmProcess, directory: Path) -> None:
        self.s3 = s3
        self.warm = warm
        self.directory = directory

    def __call__(self, *more: str, state: str = "state", **settings: Any) -> subprocess.CompletedProcess[str]:
        arguments = self.say(state, settings, *more)
        where = {"directory": self.directory, "environment": self.environment}
        return run_command(*arguments, **where, timeout=100, warm=self.warm)

    def start(self, *more: str, state: str = "state", **settings: Any) -> subprocess.Popen[str]:
        return subprocess.Popen(
            command_of(*self.say(state, settings, *more)),
            cwd=self.directory,
            env=self.environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def say(self, state: str, settings: dict[str, Any], *more: str) -> tuple[str, ...]:
        said = {name.replace("__", "."): value for name, value in settings.items()}
        values = {**SETTINGS, "engine.call_log": self.directory / f"calls-{state}", **said}
        flags = [flag for name, value in values.items() for flag in ("--set", f"{name}={value}")]
        return ("run", "q.jsonl", *FLAGS, *flags, "-o", URL, "--state", state, *more)

    @property
    def environment(self) -> dict[str, str]:
        return make_environment(**self.s3.environment)

    def made(self, state: str = "state") -> Counter[int]:
        return Counter(read_call_log(self.directory / f"calls-{state}"))


def is_part(seen: Seen) -> bool:
    return seen.is_part


def is_manifest(seen: Seen) -> bool:
    return seen.method == "PUT" and seen.key == "manifest.json"


FAULTS = {
    "500": lambda: Fault(is_part, times=3, status=500),
    "503 SlowDown": lambda: Fault(is_part, times=3, status=503, body=b"<Error><Code>SlowDown</Code></Error>"),
    "429": lambda: Fault(is_part, times=3, status=429),
    "409, two conditional requests met": lambda: Fault(is_part, times=2, status=409),
    "400, the body arrived damaged": lambda: Fault(is_part, status=400),
    "reset before": lambda: Fault(is_part, times=2, before="reset"),
    "reset after success": lambda: Fault(is_part, times=2, after="reset"),
    "500 after success": lambda: Fault(is_part, times=2, after="500"),
    "silence after success": lambda: Fault(is_part, after="silent"),
    "slow": lambda: Fault(is_part, times=3, pause_seconds=0.8),
    "manifest: silence after success": lambda: Fault(is_manifest, after="silent"),
    "manifest: reset after success": lambda: Fault(is_manifest, after="reset"),
    "lease: silence after success": lambda: Fault(
        lambda seen: seen.method == "PUT" and seen.key.endswith("lease.json"), after="silent"
    ),
    "every third request fails": lambda: Fault(lambda seen: seen.number % 3 == 0, times=20, status=503),
}


@pytest.mark.parametrize("name", FAULTS)
def test_a_run_gets_through_a_fault_that_passes(
    s3: S3, run: Runner, expected: dict[str, bytes], name: str
) -> None:
    fault = FAULTS[name]()
    times = fault.times
    s3.proxy.faults.append(fault)
    done = run()
    assert done.returncode == 0, done.stderr
    assert fault.times < times, "the fault was not met"
    assert s3.read_dataset() == expected
    assert set(run.made().values()) == {1}
    assert len(run.made()) == ROWS


def test_an_outage_ends_no_engine_and_the_next_run_puts_the_rest(
    s3: S3, run: Runner, expected: dict[str, bytes]
) -> None:
    s3.proxy.faults.append(Fault(lambda seen: seen.is_part, times=10**6, before="reset"))
    done = run(store__patience="1s")
    assert done.returncode == STORAGE, done.stderr
    assert "nothing finished is lost: see to the network, the endpoint and the credentials" in done.stderr
    assert "manifest.json" not in s3.list()
    assert len(run.made()) == ROWS
    s3.proxy.reset()
    done = run()
    assert done.returncode == 0, done.stderr
    assert set(run.made().values()) == {1}
    assert s3.read_dataset() == expected


def test_an_outage_longer_than_the_lease_is_survived_where_nobody_took_over(
    s3: S3, run: Runner, expected: dict[str, bytes]
) -> None:
    began: list[float] = []

    def is_out(seen: Seen) -> bool:
        if is_part(seen) and not began:
            began.append(time.monotonic())
        return bool(began) and time.monotonic() < began[0] + 3

    s3.proxy.faults.append(Fault(is_out, times=10**6, before="reset"))
    done = run(store__lease="1s", engine__latency_ms=20)
    assert done.returncode == 0, done.stderr
    assert s3.read_dataset() == expected
    assert set(run.made().values()) == {1}


def test_a_write_that_is_forbidden_is_said_and_loses_nothing(
    s3: S3, run: Runner, expected: dict[str, bytes]
) -> None:
    denied = b"<Error><Code>AccessDenied</Code></Error>"
    s3.proxy.faults.append(Fault(is_part, times=10**6, status=403, body=denied))
    done = run()
    assert done.returncode == STORAGE, done.stderr
    assert f"could not write {URL}/" in done.stderr
    assert "it is not allowed" in done.stderr
    assert "see to the credentials and rights (read, write, delete, list)" in done.stderr
    s3.proxy.reset()
    assert run().returncode == 0
    assert set(run.made().values()) == {1}
    assert s3.read_dataset() == expected


def test_a_store_that_forbids_everything_is_told_before_an_engine_starts(s3: S3, run: Runner) -> None:
    s3.proxy.faults.append(Fault(lambda seen: True, times=10**6, status=403))
    done = run()
    assert done.returncode == STORAGE, done.stderr
    assert not run.made()
    assert not (run.directory / "state").exists()


@pytest.mark.parametrize("condition", ["if-none-match", "if-match"])
def test_a_store_that_ignores_conditions_is_not_written_to(s3: S3, run: Runner, condition: str) -> None:
    s3.proxy.faults.append(Fault(lambda seen: condition in seen.conditions, times=10**6, ignores=True))
    done = run()
    assert done.returncode == 2, done.stderr
    assert "this store ignores If-None-Match or If-Match" in done.stderr
    assert not [key for key in s3.list() if not key.startswith(".")]
    assert not run.made()


def test_a_part_of_somebody_else_is_not_overwritten(s3: S3, run: Runner) -> None:
    s3.proxy.faults.append(Fault(is_part, times=1, call=lambda: s3.put(PART, b"mine")))
    done = run()
    assert done.returncode == REFUSED, done.stderr
    assert f"{URL}/{PART} was not put there by this run; it was not overwritten" in done.stderr
    assert s3.read(PART) == b"mine"
    assert "manifest.json" not in s3.list()


def test_a_prefix_that_holds_something_else_is_refused_untouched(s3: S3, run: Runner) -> None:
    s3.put("notes.txt", b"mine")
    done = run()
    assert done.returncode == 2, done.stderr
    assert "holds objects but no run, such as notes.txt" in done.stderr
    assert s3.list() == ["notes.txt"]


def test_another_job_is_refused_by_the_fields_that_differ(s3: S3, run: Runner) -> None:
    assert run().returncode == 0
    before = {key: s3.read(key) for key in s3.list()}
    done = run("--seed", "7", state="another")
    assert done.returncode == REFUSED, done.stderr
    assert f"{URL} belongs to another job; nothing was touched. What differs:" in done.stderr
    assert "seed: 0 before, 7 now" in done.stderr
    assert {key: s3.read(key) for key in s3.list()} == before


def test_a_bucket_that_is_not_there_is_named(s3: S3, run: Runner) -> None:
    done = run("-o", "s3://nowhere/runs")
    assert done.returncode == 2, done.stderr
    assert "s3://nowhere/runs: there is no such bucket" in done.stderr
    assert not run.made()


def test_a_second_writer_is_refused_and_told_of_the_first(s3: S3, run: Runner) -> None:
    process = run.start(engine__latency_ms=40, engine__max_num_seqs=4)
    wait_until(lambda: len(run.made()) > 50)
    try:
        done = run(state="second")
        assert done.returncode == REFUSED, done.stderr
        assert f"{URL} is being written by pid {process.pid} on {socket.gethostname()}" in done.stderr
        assert "nothing was touched" in done.stderr
        assert not run.made("second")
        assert not (run.directory / "second").exists()
    finally:
        process.kill()
        process.wait()


def test_a_stopped_writer_is_replaced_and_writes_nothing_once_it_wakes(
    s3: S3, run: Runner, expected: dict[str, bytes]
) -> None:
    stopped = run.start(engine__latency_ms=40, engine__max_num_seqs=16, store__lease="1s")
    try:
        wait_until(lambda: any(key.startswith("data/") for key in s3.list()))
        os.kill(stopped.pid, signal.SIGSTOP)
        there = {key: s3.read(key) for key in s3.list() if key.endswith(".parquet")}
        wait_until(lambda: read_lease(s3)["ends_at"] < time.time())
        done = run(state="second")
        assert done.returncode == 0, done.stderr
        assert s3.read_dataset() == expected
        assert there.items() <= expected.items()
        # What the first had put was restored, not regenerated.
        restored = [key for key in there if key.startswith("data/")]
        assert restored
        assert len(run.made("second")) <= ROWS - 1000 * len(restored)
        sent = len(s3.proxy.seen)
        os.kill(stopped.pid, signal.SIGCONT)
        _, stderr = stopped.communicate(timeout=60)
    finally:
        stopped.kill()
        stopped.wait()
    assert stopped.returncode == REFUSED, stderr
    assert f"the lease of {URL} was taken over by pid" in stderr
    assert s3.read_dataset() == expected
    writes = [seen for seen in s3.proxy.seen[sent:] if seen.method in ("PUT", "DELETE", "POST")]
    assert all(seen.conditions for seen in writes), "each write says what it expects to find"
    for _ in range(2):  # Nor by having been refused does it become the one that got on.
        behind = run()
        assert behind.returncode == REFUSED, behind.stderr
        assert "from another state directory" in behind.stderr
    assert run(state="second").returncode == 0


def wait_until(is_true: Any, seconds: float = 60) -> None:
    end = time.monotonic() + seconds
    while not is_true():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.02)
