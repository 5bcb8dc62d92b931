"""Real Ray processes, real kills: what dies costs only what was in flight, and nothing stays behind."""

import json
import os
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from conftest import command_of, make_environment, read_bytes_of_data, read_call_log, write_jsonl

pytestmark = [
    pytest.mark.long,
    pytest.mark.skipif(not Path("/proc/self/environ").exists(), reason="reads Linux's /proc"),
]
GONE_SECONDS = 15


def write_questions(path: Path, count: int, odd: dict[int, str] | None = None) -> Path:
    odd = odd or {}
    return write_jsonl(path, [{"question": f"What is {n} squared? {odd.get(n, '')}"} for n in range(count)])


@contextmanager
def start_run(directory: Path, *arguments: str | Path) -> Iterator[subprocess.Popen[str]]:
    """Start a run on the scripted engine in `directory`; whatever happens it is ended at the end."""
    command = command_of("run", *arguments, "--engine", "scripted", "-o", "out")
    with (directory / "stderr").open("w") as errors:
        child = subprocess.Popen(
            command,
            cwd=directory,
            env=make_environment(),
            stdout=subprocess.DEVNULL,
            stderr=errors,
            text=True,
        )
    try:
        yield child
    finally:
        child.kill()
        child.wait()


def finish(child: subprocess.Popen[str], directory: Path, timeout: float = 120) -> str:
    code = child.wait(timeout)
    said = (directory / "stderr").read_text()
    assert code == 0, said
    return said


def make_undisturbed(directory: Path, source: Path) -> dict[str, bytes]:
    (directory / "whole").mkdir()
    with start_run(directory / "whole", source, "--pool", "local") as child:
        finish(child, directory / "whole")
    return read_bytes_of_data(directory / "whole" / "out")


def read_events(directory: Path, kind: str) -> list[dict[str, object]]:
    path = directory / "out" / ".synthia" / "events.jsonl"
    lines = path.read_text().splitlines() if path.exists() else []
    return [event for line in lines if (event := json.loads(line))["kind"] == kind]


def wait_until(condition, child: subprocess.Popen[str], what: str, seconds: float = 60) -> None:  # type: ignore[no-untyped-def]
    deadline = time.monotonic() + seconds
    while not condition():
        assert child.poll() is None, f"the run ended before {what}"
        assert time.monotonic() < deadline, f"waited in vain for {what}"
        time.sleep(0.05)


def list_processes() -> dict[int, tuple[int, str]]:
    """Return the parent and the name of every process."""
    processes = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            head, tail = stat.read_text().rsplit(")", 1)
        except OSError:
            continue
        if tail.split()[0] != "Z":
            processes[int(stat.parent.name)] = (int(tail.split()[1]), head.split("(", 1)[1])
    return processes


def list_descendants(pid: int) -> set[int]:
    processes, found = list_processes(), {pid}
    while more := {p for p, (parent, _) in processes.items() if parent in found} - found:
        found |= more
    return found - {pid}


def list_engines(pids: set[int]) -> list[int]:
    """Return those of `pids` that are engine actors; Ray names a process after its actor."""
    return [pid for pid in pids if list_processes().get(pid, (0, ""))[1].startswith("ray::Engine")]


def list_listening(pids: set[int]) -> set[str]:
    """Return the addresses at which `pids` listen for TCP, from /proc."""
    inodes = set()
    for pid in pids:
        for link in Path(f"/proc/{pid}/fd").glob("*"):
            try:
                inodes.add(os.readlink(link).removeprefix("socket:[").removesuffix("]"))
            except OSError:
                continue
    addresses = set()
    for table, family in (("tcp", socket.AF_INET), ("tcp6", socket.AF_INET6)):
        for line in Path(f"/proc/net/{table}").read_text().splitlines()[1:]:
            fields = line.split()
            if fields[3] == "0A" and fields[9] in inodes:
                addresses.add(decode_address(fields[1].split(":")[0], family))
    return addresses


def decode_address(text: str, family: socket.AddressFamily) -> str:
    """Turn the kernel's hexadecimal, in words of the machine's byte order, into an address."""
    raw = b"".join(bytes.fromhex(text[i : i + 8])[::-1] for i in range(0, len(text), 8))
    return socket.inet_ntop(family, raw)


def wait_until_gone(pids: set[int]) -> None:
    deadline = time.monotonic() + GONE_SECONDS
    while left := pids & set(list_processes()):
        assert time.monotonic() < deadline, {pid: list_processes().get(pid) for pid in left}
        time.sleep(0.1)


def test_samples_that_crash_or_hang_engines_are_found_and_all_others_are_made_once(tmp_path: Path) -> None:
    source = write_questions(tmp_path / "q.jsonl", 200, {77: "poison", 130: "tarpit"})
    log = tmp_path / "calls"
    with start_run(
        tmp_path, source, "--workers", "2",
        "--set", "engine.crash_on=poison", "--set", "engine.hang_on=tarpit",
        "--set", "pool.watchdog_seconds=2", "--set", "engine.max_num_seqs=16",
        "--set", "engine.latency_ms=20", "--set", f"engine.call_log={log}",
    ) as child:  # fmt: skip
        wait_until(lambda: read_call_log(log), child, "the first sample")
        descendants = list_descendants(child.pid)
        assert list_listening(descendants) <= {"127.0.0.1", "::ffff:127.0.0.1", "::1"}
        assert list_listening(descendants), "the run's Ray listens somewhere, or the test is blind"
        said = finish(child, tmp_path)
        wait_until_gone(descendants)
    failed = pq.read_table(tmp_path / "out" / "failed").to_pylist()
    assert [(row["row_index"], row["code"]) for row in failed] == [
        (77, "engine_crash"),
        (130, "engine_crash"),
    ]
    assert "pid" not in failed[0]["message"]
    assert sorted(read_call_log(log)) == [n for n in range(200) if n not in (77, 130)]
    causes = [event["cause"] for event in read_events(tmp_path, "worker_lost")]
    assert {"died", "hung"} == set(causes)
    assert len(causes) <= 16
    assert "sample 77 is quarantined" in said


def test_a_killed_worker_costs_only_what_it_had_in_flight(tmp_path: Path) -> None:
    source = write_questions(tmp_path / "q.jsonl", 1200)
    log = tmp_path / "calls"
    with start_run(
        tmp_path, source, "--workers", "2",
        "--set", "engine.max_num_seqs=4", "--set", "engine.latency_ms=100",
        "--set", f"engine.call_log={log}",
    ) as child:  # fmt: skip
        wait_until(lambda: len(read_events(tmp_path, "worker_ready")) == 2, child, "two workers")
        made = len(read_call_log(log))
        wait_until(lambda: len(read_call_log(log)) > made + 20, child, "samples")
        os.kill(list_engines(list_descendants(child.pid))[0], signal.SIGKILL)
        finish(child, tmp_path)
    assert len(read_events(tmp_path, "worker_lost")) == 1
    assert len(read_events(tmp_path, "worker_ready")) == 3
    calls = read_call_log(log)
    assert set(calls) == set(range(1200))
    assert len(calls) - 1200 <= 8, "at most what one worker had in flight is made again"
    assert read_bytes_of_data(tmp_path / "out") == make_undisturbed(tmp_path, source)


def test_a_ray_of_the_jobs_own_is_gone_even_after_a_kill_of_the_driver(tmp_path: Path) -> None:
    source = write_questions(tmp_path / "q.jsonl", 2000)
    with start_run(tmp_path, source, "--workers", "1", "--set", "engine.latency_ms=200") as child:
        wait_until(lambda: read_events(tmp_path, "worker_ready"), child, "a worker")
        descendants = list_descendants(child.pid)
        assert len(descendants) >= 6
        child.send_signal(signal.SIGKILL)
        wait_until_gone(descendants)


def test_an_engine_that_never_ends_loading_is_replaced_while_the_others_go_on(tmp_path: Path) -> None:
    source = write_questions(tmp_path / "q.jsonl", 400)
    log, mark = tmp_path / "calls", tmp_path / "hangs"
    with start_run(
        tmp_path, source, "--workers", "2", "--set", f"engine.hang_load_once={mark}",
        "--set", "pool.load_timeout_seconds=10", "--set", "engine.max_num_seqs=4",
        "--set", "engine.latency_ms=400", "--set", f"engine.call_log={log}",
    ) as child:  # fmt: skip
        said = finish(child, tmp_path)
    assert "worker" in said
    assert "hung and starts again" in said
    (lost,) = read_events(tmp_path, "worker_lost")
    assert (lost["cause"], lost["unfinished"]) == ("hung", 0)
    assert "did not load in 10 s (pool.load_timeout_seconds)" in str(lost["reason"])
    assert len(read_events(tmp_path, "worker_ready")) == 2, "the other, and the hung one's successor"
    assert sorted(read_call_log(log)) == list(range(400))


def test_a_signal_while_engines_load_drains_and_shows_nothing_of_rays(tmp_path: Path) -> None:
    write_jsonl(tmp_path / "q.jsonl", [{"question": "Why?"}])
    flags = ("--engine", "scripted", "--workers", "1", "--set", "engine.load_seconds=600", "-o", "out")
    command = command_of("run", "q.jsonl", *flags)
    with subprocess.Popen(
        command, cwd=tmp_path, env=make_environment(), stderr=subprocess.PIPE, text=True
    ) as run:
        history = tmp_path / "out/.synthia/events.jsonl"
        while not (history.exists() and "worker_loading" in history.read_text()):
            assert run.poll() is None
            time.sleep(0.1)
        run.send_signal(signal.SIGTERM)
        _, told = run.communicate(timeout=100)
    assert run.returncode == 75, told
    assert "drained on SIGTERM: 0 of 1 samples finished" in told
    assert not [mark for mark in ("***", "Traceback", "ray", "@") if mark in told.replace(str(tmp_path), "")]
