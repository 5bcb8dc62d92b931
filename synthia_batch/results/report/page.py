"""write_report(): report.html, one self-contained page without scripts or requests.

Untrusted text passes through `escape` and then Jinja's escaping; the page's content security policy
forbids scripts as well. The report is not part of the dataset, and no run fails because of it.
"""

import json
import logging
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from synthia_batch.core.errors import UsageError
from synthia_batch.core.formatting import format_bytes, format_seconds
from synthia_batch.job.dotted import flatten
from synthia_batch.results.quality import measures
from synthia_batch.results.report.answers import MARKS
from synthia_batch.results.report.escape import make_visible
from synthia_batch.results.report.pipeline_page import describe_pipeline
from synthia_batch.results.report.plots import (
    default_settings,
    draw_lengths,
    draw_speed,
    render_svg,
)
from synthia_batch.results.report.summary import Report, read_report
from synthia_batch.results.report.verdict import assess, format_share
from synthia_batch.storage.atomic import publish_bytes
from synthia_batch.storage.layout import RunDir

_log = logging.getLogger(__name__)

VALUE_CHARACTERS = 600
_REASONS = {
    "stop": "ended by itself",
    "length": "cut off",
    "context_overflow": "stopped when the context was full",
    "context_truncated": "continued without its oldest turns",
}
MAX_PARTS = 200
_KINDS = {"random": "Random", "longest": "Longest", "truncated": "Cut off"}
_LIMITS = {
    "share": f"{measures.REPEATED_SHARE:.0%}",
    "ratio": measures.COMPRESSION_RATIO,
    "tail": f"{measures.TAIL_BYTES:,}",
    "words": measures.NGRAM_WORDS,
}


def write_report(directory: Path, output: Path | None = None) -> Path:
    """Write the report of the run or the pipeline in `directory`; return its path.

    It is `output`, by default report.html in the directory.

    Raises:
        UsageError: `directory` is neither, or `output` is not a possible file.
    """
    path = output or RunDir(directory).report
    if path.is_dir() or not path.parent.is_dir():
        raise UsageError(f"-o {path}: expected a file name in an existing directory")
    if RunDir(directory).pipeline.exists():
        # Links lead from its own directory only.
        context = describe_pipeline(directory, links=output is None)
        page = _open_environment().get_template("pipeline.html.jinja").render(context)
    else:
        page = render_page(read_report(directory))
    publish_bytes(path, page.encode(errors="replace"))
    return path


def try_report(directory: Path) -> None:
    """Write the report of a complete run or pipeline. On failure, log it and that the dataset is complete."""
    try:
        write_report(directory)
    # Any error, and Ctrl-C too: the dataset is complete and must not seem lost.
    except (Exception, KeyboardInterrupt) as exc:
        reason = str(exc).splitlines()[0] if str(exc) else type(exc).__name__
        again = f"synthia-batch report {directory}"
        _log.info(f"could not write the report: {reason}\n  the dataset is complete; try `{again}`")


def render_page(report: Report) -> str:
    """Return the page of a report. The same report gives the same page."""
    template = _open_environment().get_template("report.html.jinja")
    head = report.head
    context = {
        "report": report,
        "head": head,
        "title": make_visible(head.name),
        "subject": "run",
        "whole": report.counts.total,
        "verdict": assess(report),
        "plots": _draw_all(report),
        "reasons": _list_reasons(report),
        "times": _list_times(report),
        "systems": _list_systems(report),
        "identity": [(key, _format_value(value)) for key, value in flatten(head.identity).items()],
        "parts": list(report.parts)[:MAX_PARTS],
        "hidden_parts": max(0, len(report.parts) - MAX_PARTS),
        "kinds": _KINDS,
        "marks": MARKS,
        "limits": _LIMITS,
    }
    return template.render(context)


@cache
def _open_environment() -> Environment:
    environment = Environment(
        loader=PackageLoader("synthia_batch.results.report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    filters: dict[str, Callable[[Any], str]] = {
        "number": lambda value: f"{value:,}",
        "visible": make_visible,
        "seconds": format_seconds,
        "size": format_bytes,
    }
    environment.filters.update(filters)
    environment.globals["share"] = format_share
    return environment


def _draw_all(report: Report) -> dict[str, Markup]:
    with default_settings():
        return dict(_draw(report))


def _draw(report: Report) -> Iterator[tuple[str, Markup]]:
    head = report.head
    if report.counts.total.finished:
        sums = head.plays_turns
        prompts = "tokens of the prompts of a conversation" if sums else "tokens of a prompt"
        answers = "tokens of the answers of a conversation" if sums else "tokens of an answer"
        yield "prompts", Markup(render_svg(draw_lengths(report.prompt_bins, prompts)))
        yield "answers", Markup(render_svg(draw_lengths(report.answer_bins, answers)))
    if any(report.history.attempts):
        yield "speed", Markup(render_svg(draw_speed(report.history)))


def _list_reasons(report: Report) -> list[dict[str, Any]]:
    whole = report.counts.total
    ordered = sorted(whole.reasons.items(), key=lambda pair: (-pair[1], pair[0]))
    return [
        {
            "name": make_visible(name),
            "meaning": _REASONS.get(name, ""),
            "count": count,
            "share": format_share(count, whole.finished),
            "percent": _percent(count, whole.finished),
        }
        for name, count in ordered
    ]


def _list_times(report: Report) -> list[dict[str, Any]]:
    """Return what the attempts took their time for: loading, generating and the rest."""
    whole = sum(attempt.seconds for attempt in report.attempts)
    loading = sum(one.end - one.start for one in report.history.loadings)
    generating = sum(attempt.generating_seconds for attempt in report.attempts)
    named = (
        ("loading", "until the first engine was ready", loading),
        ("generating", "from then on, to the last sample", generating),
        ("the rest", "publishing files and ending", whole - loading - generating),
    )
    return [
        {"name": name, "meaning": meaning, "seconds": max(0.0, seconds), "percent": _percent(seconds, whole)}
        for name, meaning, seconds in named
    ]


def _percent(part: float, whole: float) -> float:
    """Return the width of a bar in percent."""
    return round(min(100.0, max(0.0, 100 * part / whole)), 2) if whole else 0.0


def _list_systems(report: Report) -> list[dict[str, Any]]:
    expected = report.head.samples // len(report.head.systems)
    # Rows may have their own system message: the expected number is then unknown.
    has_all = report.head.state == "complete" and not report.counts.not_selected
    is_known = has_all and set(report.counts.groups) <= set(report.head.systems)
    lines = []
    for name, group in sorted(report.counts.groups.items()):
        read = report.texts.read_by_group.get(name, 0)
        marks = report.texts.groups.get(name, dict.fromkeys(MARKS, 0))
        lines.append(
            {
                **group.answers.to_dict(),
                "name": make_visible(name),
                "finished": group.finished,
                "failed": expected - group.finished if is_known else None,
                "truncated": format_share(group.truncated, group.finished),
                "reasons": ", ".join(f"{reason} {n:,}" for reason, n in sorted(group.reasons.items())),
                "marks": [format_share(marks[mark], read) for mark in MARKS],
            }
        )
    return lines


def _format_value(value: Any) -> str:
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    visible = make_visible(text)
    if len(visible) <= VALUE_CHARACTERS:
        return visible
    return f"{visible[:VALUE_CHARACTERS]}… ({len(visible):,} characters)"
