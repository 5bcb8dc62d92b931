"""A run's metrics, scraped while it goes on, and word of its end, sent to a real web server."""

import json
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.error import URLError
from urllib.request import urlopen

import pytest
from conftest import Command, command_of, make_environment, write_jsonl
from prometheus_client.parser import text_string_to_metric_families

SCRIPTED = ("--engine", "scripted", "--pool", "local", "--workers", "2", "-o", "out")
SLOW = ("--set", "engine.latency_ms=300", "--set", "engine.max_num_seqs=4")
PASSWORD = "hunter2-very-secret"


@pytest.fixture
def questions(tmp_path: Path) -> str:
    write_jsonl(tmp_path / "q.jsonl", [{"question": f"What is {n} squared?"} for n in range(120)])
    return "q.jsonl"


@pytest.fixture
def port() -> int:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return int(taken.getsockname()[1])


def scrape(port: int) -> dict[tuple[str, str], float]:
    """Return each number by its name and the last of its labels, once all have those of the run."""
    with urlopen(f"http://127.0.0.1:{port}/metrics", timeout=5) as answer:
        text = answer.read().decode()
    found = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            labels = dict(sample.labels)
            assert labels.pop("run") == "q"
            assert len(labels.pop("fingerprint")) == 32
            found[sample.name, next(iter(labels.values()), "")] = sample.value
    return found


def scrape_until(port: int, run: "subprocess.Popen[str]", name: str, value: float) -> dict[Any, float]:
    while True:
        assert run.poll() is None, "the run ended before"
        try:
            found = scrape(port)
        except URLError:
            found = {}
        if found.get((name, ""), 0) >= value:
            return found
        time.sleep(0.05)


def test_metrics_are_scraped_while_a_run_goes_on(questions: str, tmp_path: Path, port: int) -> None:
    command = command_of(
        "run", questions, *SCRIPTED, *SLOW, "--metrics-port", str(port), "--max-tokens", "12",
        "--set", "engine.fail_every=10",
    )  # fmt: skip
    with subprocess.Popen(
        command, cwd=tmp_path, env=make_environment(), stderr=subprocess.PIPE, text=True
    ) as run:
        first = scrape_until(port, run, "synthia_batch_samples_finished_total", 5)
        later = scrape_until(port, run, "synthia_batch_samples_finished_total", 60)
        _, errors = run.communicate()
    assert run.returncode == 0, errors
    assert f"metrics: http://127.0.0.1:{port}/metrics" in errors
    with pytest.raises(URLError):
        scrape(port)
    assert first["synthia_batch_samples", "all"] == 120
    for found in (first, later):
        states = {state: found["synthia_batch_samples", state] for state in ("finished", "failed")}
        assert found["synthia_batch_samples_finished_total", ""] == states["finished"]
        assert found.get(("synthia_batch_samples_failed_total", "scripted_failure"), 0) == states["failed"]
        assert 0 < found["synthia_batch_tokens_total", ""] < found["synthia_batch_prompt_tokens_total", ""]
        assert found["synthia_batch_cached_prompt_tokens_total", ""] == 0
        assert [found["synthia_batch_worker_ready", worker] for worker in "01"] == [1, 1]
        assert [found["synthia_batch_worker_restarts_total", worker] for worker in "01"] == [0, 0]
    assert later["synthia_batch_samples_failed_total", "scripted_failure"] > 0
    assert later["synthia_batch_samples_truncated_total", ""] > 0
    assert later["synthia_batch_worker_in_flight", "0"] > 0
    busy = [found["synthia_batch_worker_busy_seconds_total", "0"] for found in (first, later)]
    assert 0 < busy[0] < busy[1]


def test_a_port_that_is_taken_is_told_before_anything_begins(
    questions: str, tmp_path: Path, synthia: Command
) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        number = str(taken.getsockname()[1])
        done = synthia("run", questions, *SCRIPTED, "--metrics-port", number)
    assert done.returncode == 2
    assert f"--metrics-port {number}: Address already in use on 127.0.0.1; nothing was started" in done.stderr
    assert "choose another port" in done.stderr
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("package", "flags", "words"),
    [
        ("prometheus_client", ("--metrics-port", "9400"), "pip install 'synthia-batch[metrics]'"),
        ("apprise", ("--notify", "json://127.0.0.1"), "pip install 'synthia-batch[notify]'"),
    ],
)
def test_a_package_that_is_missing_is_named_with_what_installs_it(
    questions: str, tmp_path: Path, package: str, flags: tuple[str, ...], words: str
) -> None:
    probe = (
        f"import sys; sys.modules[{package!r}] = None; sys.argv = ['synthia-batch', *sys.argv[1:]]\n"
        "from synthia_batch.cli.app import main; main()"
    )
    command = [sys.executable, "-c", probe, "run", questions, *SCRIPTED, *flags]
    done = subprocess.run(
        command, cwd=tmp_path, env=make_environment(), capture_output=True, text=True, check=False
    )
    assert done.returncode == 2, done.stderr
    assert words in done.stderr
    assert not (tmp_path / "out").exists()


class Mailbox:
    """A web server that keeps what is posted to it."""

    def __init__(self) -> None:
        self.received: list[dict[str, Any]] = []
        received = self.received

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                received.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
                self.send_response(200)
                self.end_headers()

            def log_message(self, format: str, *args: Any) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True).start()

    @property
    def url(self) -> str:
        return f"json://somebody:{PASSWORD}@127.0.0.1:{self._server.server_port}"

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()

    def take_one(self) -> tuple[str, list[str]]:
        """Return the title and the lines of the only letter."""
        (letter,) = self.received
        self.received.clear()
        return letter["title"], letter["message"].splitlines()


@pytest.fixture
def mailbox() -> Iterator[Mailbox]:
    box = Mailbox()
    yield box
    box.close()


def assert_secret_is_nowhere(directory: Path, done: "subprocess.CompletedProcess[str]") -> None:
    assert PASSWORD not in done.stdout + done.stderr
    for path in directory.rglob("*"):
        assert not path.is_file() or PASSWORD.encode() not in path.read_bytes(), path


def test_the_end_of_a_run_is_told(questions: str, tmp_path: Path, synthia: Command, mailbox: Mailbox) -> None:
    done = synthia("run", questions, *SCRIPTED, "--notify", mailbox.url)
    assert done.returncode == 0, done.stderr
    title, lines = mailbox.take_one()
    assert title == "q: complete"
    assert lines[0] == "120 of 120 samples finished, 0 failed"
    assert lines[1].endswith(" s, exit code 0")
    assert lines[2:] == ["out", "next: synthia-batch report out"]
    assert_secret_is_nowhere(tmp_path, done)
    again = synthia("run", questions, *SCRIPTED, "--notify", mailbox.url)
    assert again.returncode == 0
    assert not mailbox.received, "nothing ran"


def test_a_drained_run_tells_the_command_that_goes_on(
    questions: str, tmp_path: Path, mailbox: Mailbox
) -> None:
    command = command_of("run", questions, *SCRIPTED, *SLOW, "--notify", "${MAILBOX}")
    with subprocess.Popen(
        command, cwd=tmp_path, env=make_environment(MAILBOX=mailbox.url), stdout=subprocess.PIPE,
        stderr=subprocess.PIPE, text=True,
    ) as run:  # fmt: skip
        while not any(path.stat().st_size > 500 for path in tmp_path.glob("out/.synthia/journal/*.wal")):
            assert run.poll() is None
            time.sleep(0.05)
        run.send_signal(signal.SIGTERM)
        out, errors = run.communicate(timeout=60)
    assert run.returncode == 75, errors
    title, lines = mailbox.take_one()
    assert title == "q: stopped on SIGTERM"
    assert lines[1].endswith(" s, exit code 75")
    assert lines[-1].startswith("next: synthia-batch run q.jsonl")
    assert "--notify '${MAILBOX}'" in lines[-1], "by its name"
    assert_secret_is_nowhere(tmp_path, subprocess.CompletedProcess(command, 75, out, errors))


def test_too_many_failures_are_told(questions: str, synthia: Command, mailbox: Mailbox) -> None:
    flags = ("--set", "engine.fail_every=3", "--max-failures", "2")
    done = synthia("run", questions, *SCRIPTED, *SLOW, *flags, "--notify", mailbox.url)
    assert done.returncode == 3
    title, lines = mailbox.take_one()
    assert title == "q: stopped on too many failures"
    assert lines[1].endswith(" s, exit code 3")


def test_an_error_is_told_and_stays_what_it_is(
    questions: str, tmp_path: Path, synthia: Command, mailbox: Mailbox
) -> None:
    flags = ("--set", "engine.shows_batch_above=1", "--notify", mailbox.url)
    done = synthia("run", questions, *SCRIPTED, *flags)
    assert done.returncode == 4, done.stderr
    title, lines = mailbox.take_one()
    assert title.startswith("q: ended by an error: ")
    assert lines[0] == "0 of 120 samples finished, 0 failed"
    assert lines[1].endswith(" s, exit code 4")
    assert "--notify json://..." in lines[-1]
    assert_secret_is_nowhere(tmp_path, done)


def test_a_letter_that_cannot_be_sent_fails_no_run(
    questions: str, tmp_path: Path, synthia: Command, port: int
) -> None:
    done = synthia("run", questions, *SCRIPTED, "--notify", f"json://me:{PASSWORD}@127.0.0.1:{port}")
    assert done.returncode == 0
    assert "--notify json://...: could not be sent; the run is not affected" in done.stderr
    assert_secret_is_nowhere(tmp_path, done)


@pytest.mark.parametrize(
    ("url", "words"),
    [
        (f"nosuch://{PASSWORD}", "--notify nosuch://...: expected an address that Apprise can send to"),
        ("json://${NOT_SET_ANYWHERE}", "the environment variable NOT_SET_ANYWHERE is not set"),
    ],
)
def test_an_address_that_cannot_work_is_refused_before_anything_begins(
    questions: str, tmp_path: Path, synthia: Command, url: str, words: str
) -> None:
    done = synthia("run", questions, *SCRIPTED, "--notify", url)
    assert done.returncode == 2, done.stderr
    assert words in done.stderr
    assert PASSWORD not in done.stderr
    assert not (tmp_path / "out").exists()
