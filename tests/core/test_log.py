"""Messages to the terminal."""

import io
import logging
from pathlib import Path

import pytest

from synthia_batch.core.log import PER_SAMPLE, keep_log, mute_log, set_verbosity, show_log
from synthia_batch.errors import PoolFailed

LOG = logging.getLogger("synthia_batch.some.module")


def log_all() -> None:
    LOG.info("worker 0 lost")
    LOG.log(PER_SAMPLE, "q.jsonl:3: refused")
    LOG.debug("canary ok")


@pytest.mark.parametrize(
    ("quiet", "verbose", "shown"),
    [
        (True, False, ["worker 0 lost"]),
        (False, False, ["worker 0 lost", "q.jsonl:3: refused"]),
        (False, True, ["worker 0 lost", "q.jsonl:3: refused", "canary ok"]),
    ],
)
def test_quiet_hides_messages_about_samples_and_verbose_adds_details(
    quiet: bool, verbose: bool, shown: list[str]
) -> None:
    stream = io.StringIO()
    with show_log(stream):
        set_verbosity(quiet=quiet, verbose=verbose)
        log_all()
    assert stream.getvalue().splitlines() == shown


def test_nothing_is_written_after_the_block() -> None:
    stream = io.StringIO()
    before = logging.getLogger("synthia_batch").level
    with show_log(stream, quiet=True):
        pass
    log_all()
    assert stream.getvalue() == ""
    assert logging.getLogger("synthia_batch").level == before


def test_a_muted_logger_drops_messages_up_to_info() -> None:
    stream = io.StringIO()
    with show_log(stream), mute_log("synthia_batch.some"):
        log_all()
        LOG.warning("disk full")
    assert stream.getvalue() == "disk full\n"


def test_a_kept_log_has_the_messages_and_the_error_though_no_stream_takes_them(tmp_path: Path) -> None:
    gone = io.StringIO()
    gone.close()
    path = tmp_path / "run.log"

    def end_with_an_error() -> None:
        with show_log(gone), keep_log(path):
            log_all()
            raise PoolFailed("no worker is left")

    with pytest.raises(PoolFailed):
        end_with_an_error()
    told = [line.split(" ", 2)[2] for line in path.read_text().splitlines()]
    assert told == ["worker 0 lost", "q.jsonl:3: refused", "error: no worker is left"]


def test_a_log_is_not_written_through_a_link(tmp_path: Path) -> None:
    (tmp_path / "run.log").symlink_to(tmp_path / "other")
    with keep_log(tmp_path / "run.log"):
        LOG.info("worker 0 lost")
    assert not (tmp_path / "other").exists()


def test_a_kept_log_has_no_secrets_and_no_control_characters(tmp_path: Path) -> None:
    path = tmp_path / "run.log"
    with keep_log(path):
        LOG.warning("https://me:hunter2@example.org/x does not answer: \x1b[31mno")
    told = path.read_text()
    assert "hunter2" not in told
    assert "\x1b" not in told
    assert "example.org/x does not answer: " in told
