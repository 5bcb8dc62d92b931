"""The verdict on a run, in plain sentences. Pure."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from synthia_batch.results.report.summary import Report, RunHead

Level = Literal["good", "note", "warn", "bad"]

NOTABLE_SHARE = 0.01
"""Share from which heuristic findings are in the verdict."""
NOTABLE_DUPLICATES = 0.05
_MARKS = {
    "empty": ("{} are empty", 0.0),
    "repetitive": ("{} repeat themselves (heuristic)", NOTABLE_SHARE),
    "duplicate": ("{} are the same as another", NOTABLE_DUPLICATES),
    "refusal": ("{} begin like a refusal (heuristic)", NOTABLE_SHARE),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Sentence:
    """One sentence of the verdict. `samples` is the id of the page's part that shows its samples, if any."""

    level: Level
    text: str
    samples: str = ""


def assess(report: Report) -> list[Sentence]:
    """Return the sentences about a run, most important first."""
    return [
        _describe_state(report),
        *_describe_truncation(report),
        *_describe_failures(report),
        *_describe_texts(report),
        *_describe_losses(report),
    ]


def format_share(part: int, whole: int) -> str:
    """Return the share in percent: 31%, 0.4%, under 0.1%."""
    share = 100 * part / whole if whole else 0.0
    if share >= 10 or share == 0 or part == whole:
        # never 100% of an incomplete whole
        return f"{min(round(share), 100 if part == whole else 99)}%"
    return f"{share:.1f}%" if share >= 0.1 else "under 0.1%"


def _describe_state(report: Report) -> Sentence:
    head, finished = report.head, report.counts.total.finished
    failed, dropped = report.counts.failed, report.counts.not_selected
    done = f"{finished:,} of {head.samples:,} samples are finished"
    if dropped:
        done += f", {dropped:,} not selected"
    if failed:
        done += f", {failed:,} failed"
    if head.state == "running":
        return Sentence(level="note", text=f"Still running: {done}.")
    if head.state == "interrupted":
        return Sentence(level="warn", text=f"Not complete: {done}. The same command resumes it.")
    if not finished:
        return Sentence(level="bad", text=f"Complete, and every one of the {head.samples:,} samples failed.")
    if failed or dropped:
        return Sentence(level="warn" if failed else "good", text=f"Complete: {done}.")
    return Sentence(level="good", text=f"Complete: all {finished:,} samples are finished.")


def _describe_truncation(report: Report) -> Iterator[Sentence]:
    head, whole = report.head, report.counts.total
    what = "conversations" if head.plays_turns else "answers"
    if not whole.finished:
        return
    if not whole.truncated:
        yield Sentence(level="good", text=f"No {what[:-1]} was cut off.")
        return
    by_limit = whole.truncated if head.plays_turns else whole.truncated - whole.cut_early
    if by_limit:
        how = "had an answer cut off" if head.plays_turns else "were cut off"
        yield Sentence(
            level="warn",
            text=f"{_count(by_limit, whole.finished, what)} {how} {_name_limit(head)}",
            samples="panel-truncated",
        )
    if by_limit < whole.truncated:
        yield Sentence(
            level="warn",
            text=f"{_count(whole.truncated - by_limit, whole.finished, what)} were cut off because the "
            f"context{_format_length(head.max_model_len)} was full: shorten the prompts, or raise "
            "model.max_model_len.",
            samples="panel-truncated",
        )


def _format_length(tokens: int | None) -> str:
    return "" if tokens is None else f" of {tokens:,} tokens"


def _describe_failures(report: Report) -> Iterator[Sentence]:
    failures = report.counts.failures
    if failures:
        named = ", ".join(f"{code} {number:,}" for code, number in list(failures.items())[:3])
        more = f" and {len(failures) - 3} other codes" if len(failures) > 3 else ""
        total, dropped = report.counts.failed, report.counts.not_selected
        ended = total + dropped + report.counts.total.finished
        yield Sentence(
            level="bad" if total > ended / 2 else "warn",
            text=f"{_count(total, ended, 'samples')} failed: {named}{more}. "
            "What helps: synthia-batch failed DIR.",
            samples="panel-failed",
        )


def _describe_texts(report: Report) -> Iterator[Sentence]:
    texts = report.texts
    for mark, (words, notable) in _MARKS.items():
        found = texts.total[mark]
        if found and found >= notable * texts.read:
            counted = _count(found, texts.read, "answers" if texts.read == texts.finished else "answers read")
            yield Sentence(
                level="note" if mark == "refusal" else "warn",
                text=words.format(counted) + ".",
                samples=f"flagged-{mark}",
            )


def _describe_losses(report: Report) -> Iterator[Sentence]:
    losses, attempts = sum(attempt.workers_lost for attempt in report.attempts), len(report.attempts)
    if losses:
        times = "once" if losses == 1 else f"{losses:,} times"
        yield Sentence(level="note", text=f"An engine was lost {times}; no finished sample was lost.")
    if attempts > 1:
        yield Sentence(level="note", text=f"It took {attempts} attempts; no sample was finished twice.")


def _name_limit(head: RunHead) -> str:
    if head.max_tokens is None:
        return "at their max_tokens: raise it, or the limits in the sampling column."
    return f"at {head.max_tokens:,} tokens: raise --max-tokens."


def _count(part: int, whole: int, what: str) -> str:
    return f"{part:,} of {whole:,} {what} ({format_share(part, whole)})"
