"""Messages to the terminal."""

import io
import logging

import pytest

from synthia_batch.core.log import PER_SAMPLE, mute_log, set_verbosity, show_log

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
