"""Two runs on one directory, a stopped owner, and a message from a worker that was given up."""

import os
import signal
import socket
import subprocess
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from conftest import Command, command_of, make_environment, read_bytes_of_data, read_call_log, write_jsonl

from synthia_batch.core.shutdown import DrainRequest
from synthia_batch.core.types import Finished, Outcome, Request
from synthia_batch.scheduler.dispatcher import Dispatcher
from synthia_batch.scheduler.driver import Driver
from synthia_batch.workers.engine import NO_REDUCTION, EngineFacts, Reduction
from synthia_batch.workers.pools.base import Cause, PoolEvent, SamplesEnded, WorkerLost, WorkerReady
from synthia_batch.workers.pools.startup import StartedPool

ROWS = 120
FLAGS = ("--engine", "scripted", "--pool", "local", "-q", "--set", "engine.max_num_seqs=2")
IN_USE = 4


@contextmanager
def start_slow_run(directory: Path) -> Iterator[subprocess.Popen[str]]:
    """Start a run of some ten seconds and wait until its first samples are made."""
    write_jsonl(directory / "q.jsonl", [{"question": f"What is {n} squared?"} for n in range(ROWS)])
    log = directory / "calls"
    slow = ("--set", "engine.latency_ms=200", "--set", f"engine.call_log={log}")
    command = command_of("run", "q.jsonl", *FLAGS, *slow, "-o", "out")
    process = subprocess.Popen(
        command,
        cwd=directory,
        env=make_environment(),
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    try:
        while len(read_call_log(log)) < 10:
            assert process.poll() is None, process.communicate()
            time.sleep(0.01)
        yield process
    finally:
        process.kill()
        process.wait()


def check_refused(refused: subprocess.CompletedProcess[str], owner: int) -> None:
    assert refused.returncode == IN_USE, refused.stderr
    assert f"is in use by pid {owner} on {socket.gethostname()}, since " in refused.stderr
    assert "nothing was touched" in refused.stderr


@pytest.mark.parametrize("stopped", [False, True])
def test_a_second_run_is_refused_and_the_first_goes_on(
    synthia: Command, tmp_path: Path, stopped: bool
) -> None:
    with start_slow_run(tmp_path) as first:
        if stopped:
            first.send_signal(signal.SIGSTOP)
            os.waitid(os.P_PID, first.pid, os.WSTOPPED)
        log = tmp_path / "calls-of-second"
        second = synthia("run", "q.jsonl", *FLAGS, "--set", f"engine.call_log={log}", "-o", "out")
        check_refused(second, first.pid)
        assert not log.exists()
        first.send_signal(signal.SIGCONT)
        _, errors = first.communicate(timeout=60)
        assert first.returncode == 0, errors
    assert sorted(read_call_log(tmp_path / "calls")) == list(range(ROWS))
    assert synthia("run", "q.jsonl", *FLAGS, "-o", "alone").returncode == 0
    assert read_bytes_of_data(tmp_path / "out") == read_bytes_of_data(tmp_path / "alone")


def test_a_stopped_owner_that_is_killed_leaves_the_directory_free(synthia: Command, tmp_path: Path) -> None:
    with start_slow_run(tmp_path) as first:
        first.send_signal(signal.SIGSTOP)
        os.waitid(os.P_PID, first.pid, os.WSTOPPED)
        first.kill()
        first.wait()
        assert synthia("run", "q.jsonl", *FLAGS, "-o", "out").returncode == 0


FACTS = EngineFacts(engine="scripted", version="1", device="none", capacity=4, max_model_len=100)


def finish(ordinal: int, response: str) -> Finished:
    return Finished(
        ordinal=ordinal,
        response=response,
        reasoning=None,
        finish_reason="stop",
        prompt_tokens=1,
        completion_tokens=1,
    )


@dataclass
class ZombiePool:
    """Loses its worker, starts it again, and then hears from both."""

    size: int = 1
    unplaced: int = 0
    fed: list[list[int]] = field(default_factory=list)
    events: list[Sequence[PoolEvent]] = field(default_factory=list)
    restarted: bool = False

    def start(self) -> None:
        self.events = [[WorkerReady(worker=0, epoch=1, facts=FACTS, canary=None)]]

    def feed(self, worker: int, requests: Sequence[Request]) -> None:
        self.fed.append([request.ordinal for request in requests])
        if self.restarted:
            answers = {name: tuple(finish(n, f"{name} {n}") for n in range(4)) for name in ("zombie", "heir")}
            self.events = [
                [SamplesEnded(worker=0, epoch=1, outcomes=answers["zombie"])],
                [SamplesEnded(worker=0, epoch=2, outcomes=(finish(99, "of another worker"),))],
                [SamplesEnded(worker=0, epoch=2, outcomes=answers["heir"][:2])],
                [SamplesEnded(worker=0, epoch=1, outcomes=answers["zombie"][2:])],
                [SamplesEnded(worker=0, epoch=2, outcomes=answers["heir"])],
            ]
        else:
            self.events = [
                [WorkerLost(worker=0, epoch=1, reason="not heard of for a while", cause=Cause.NODE_LOST)]
            ]

    def restart(self, worker: int, reduction: Reduction = NO_REDUCTION) -> None:
        self.restarted = True
        self.events = [
            [SamplesEnded(worker=0, epoch=1, outcomes=(finish(0, "zombie, before its heir was ready"),))],
            [WorkerReady(worker=0, epoch=2, facts=FACTS, canary=None)],
        ]

    def poll(self, timeout_seconds: float) -> Sequence[PoolEvent]:
        time.sleep(0.001)
        return self.events.pop(0) if self.events else []

    def abort(self) -> None: ...

    def stop(self, at_once: bool = False) -> None: ...


@dataclass
class Notebook:
    """A sink that remembers."""

    recorded: list[Outcome] = field(default_factory=list)

    def record(self, outcomes: Sequence[Outcome]) -> None:
        self.recorded += outcomes

    def tick(self) -> None: ...


def test_a_late_message_of_a_worker_that_was_given_up_is_counted_and_dropped(tmp_path: Path) -> None:
    pool, notebook = ZombiePool(), Notebook()
    driver = Driver(
        sink=notebook,
        drain=DrainRequest(),
        check_canary=lambda ready: None,
        watchdog_seconds=300,
        log_path=lambda index: tmp_path / "log",
    )
    requests = iter([Request(ordinal=n, token_ids=b"x", seed=n) for n in range(4)])
    pool.start()
    assert driver.run(Dispatcher(requests, 4), lambda: StartedPool(pool=pool)) is None
    assert pool.fed == [[0, 1, 2, 3], [0, 1, 2, 3]]
    assert notebook.recorded == [finish(n, f"heir {n}") for n in range(4)]
    # One before the heir was ready, four and two of the zombie, one foreign, two made twice.
    assert (driver.ended, driver.dropped) == (4, 10)
