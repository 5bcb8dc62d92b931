"""What the page of a pipeline shows: its report, with untrusted text escaped."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from synthia_batch.core.types import Message
from synthia_batch.results.export.pairs import Pair
from synthia_batch.results.report.escape import Escaped, escape_text, make_visible
from synthia_batch.results.report.funnel import PipelineReport, read_pipeline_report
from synthia_batch.results.report.samples import TURN_BYTES
from synthia_batch.results.report.verdict import Sentence
from synthia_batch.storage.layout import RunDir


def describe_pipeline(directory: Path, *, links: bool) -> dict[str, Any]:
    """Return what the template of a pipeline's page names. `links`: to the pages of the stages that have one.

    Raises:
        IntegrityError: A file of the pipeline was altered.
    """
    report = read_pipeline_report(directory)
    runs = RunDir(directory).stages
    linked = [stage.run for stage in report.stages if links and RunDir(runs / stage.run).report.exists()]
    return {
        "report": report,
        "title": make_visible(report.directory),
        "subject": "pipeline",
        "verdict": [*_assess(report)],
        "widest": max(1, *(stage.kept for stage in report.stages), 1),
        "linked": linked,
        "pairs": [_escape_pair(pair) for pair in report.pairs],
    }


def _assess(report: PipelineReport) -> Iterator[Sentence]:
    if report.is_complete:
        first, last = report.stages[0], report.stages[-1]
        kept = f"the last stage keeps {last.kept:,}"
        rows = f"{first.rows:,} {'row' if first.rows == 1 else 'rows'}"
        yield Sentence(level="good", text=f"Complete: of {rows}, {first.samples:,} samples; {kept}.")
    else:
        behind = [stage.name for stage in report.stages if stage.state != "complete"]
        named = ", ".join([*behind, *report.missing, *report.lost])
        yield Sentence(
            level="warn", text=f"Not complete: {named} to be made. The same command goes on with it."
        )
    if report.lost:
        named = ", ".join(report.lost)
        yield Sentence(
            level="bad", text=f"Lost: {named}. It was complete, and its directory is not there: restore it."
        )
    for stage in report.stages:
        failed = sum(stage.failed.values())
        if failed:
            codes = ", ".join(f"{code} {count:,}" for code, count in [*stage.failed.items()][:3])
            yield Sentence(
                level="bad" if failed > stage.samples / 2 else "warn",
                text=f"{stage.name}: {failed:,} of {stage.samples:,} samples failed: {codes}. "
                "What helps: synthia-batch failed DIR.",
            )


def _escape_pair(pair: Pair) -> dict[str, Any]:
    question = next((turn for turn in reversed(pair.chosen.prompt) if turn.role == "user"), None)
    return {
        "question": _escape(question),
        "best": _escape(pair.chosen.message),
        "best_score": f"{pair.chosen.score:g}",
        "worst": _escape(pair.rejected.message),
        "worst_score": f"{pair.rejected.score:g}",
    }


def _escape(message: Message | None) -> Escaped:
    return escape_text((message and message.content) or "", TURN_BYTES)
