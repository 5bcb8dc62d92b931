"""The probe of `synthia-batch plan`: an estimate of the whole job, as text and as JSON."""

import sys
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import typer

from synthia_batch.core.formatting import format_bytes, format_seconds
from synthia_batch.core.terminal import show
from synthia_batch.job.loading.command_line import describe_command

if TYPE_CHECKING:
    from synthia_batch.job.resolved import ResolvedJob
    from synthia_batch.operations.estimate import LengthSummary, Span
    from synthia_batch.operations.probe import Estimate, Probe
    from synthia_batch.scheduler.throughput import Speed

HOW = (
    "method: token ranges cover 9 of 10 jobs with such answer lengths; the speed is between the measured\n"
    "  one and that with full batches at no extra cost; restarts are not included"
)
FEW = "method: so few samples give only the upper limit of tokens; probe at least"


def probe(job: "ResolvedJob", count: int) -> "Probe":
    """Return the result of a probe of `count` samples; report and exit if it drained early."""
    from synthia_batch.core.console import Display
    from synthia_batch.operations.probe import probe_job

    found = probe_job(job, count, Display())
    if found.drained is not None:
        show(
            f"drained on {found.drained.label}: {found.known} of {found.asked} samples are done",
            file=sys.stderr,
        )
        show("no estimate, since the shortest answers finish first", file=sys.stderr)
        show(f"resume with: {describe_command()}", file=sys.stderr)
        raise typer.Exit(found.drained.exit_code)
    return found


def describe_probe(found: "Probe") -> str:
    """Return the result of a probe as text."""
    from synthia_batch.operations.estimate import FEW_SAMPLES

    lines = [_describe_samples(found)]
    lines += ["speed: not measured, as no attempt that generated these samples has ended"]
    if found.speed is not None:
        lines[-1] = _describe_speed(found.speed)
    if found.lengths is not None:
        lines.append(_describe_lengths(found.lengths))
    lines.append(_describe_failures(found))
    lines.append(f"whole job: {_describe_estimate(found.whole, found.hours_of)}")
    if found.left.samples:
        lines.append(f"left: {_describe_estimate(found.left, found.hours_of)}")
    if found.data_bytes is not None:
        lines.append(f"output: about {format_bytes(found.data_bytes)} in data/")
    is_guess = found.whole.samples > found.known < FEW_SAMPLES
    return "\n".join([*lines, f"{FEW} {FEW_SAMPLES}" if is_guess else HOW])


def probe_to_dict(found: "Probe") -> dict[str, Any]:
    """Return the result of a probe as JSON-serializable values."""
    values = asdict(found)
    values["directory"] = str(found.directory).encode(errors="backslashreplace").decode()
    del values["drained"]
    if found.speed is not None:
        values["speed"]["tokens_per_second"] = round(found.speed.tokens_per_second, 1)
        values["speed"]["samples_per_second"] = round(found.speed.samples_per_second, 3)
    return values


def _describe_samples(found: "Probe") -> str:
    more = "the run is complete" if found.is_complete else "`run` reuses them"
    return f"probe: {found.known} samples from across the job, {found.made} of them generated now; {more}"


def _describe_speed(speed: "Speed") -> str:
    engines = "1 engine" if speed.engines == 1 else f"{speed.engines} engines"
    return (
        f"speed: {speed.tokens_per_second:.0f} tokens/s, {speed.samples_per_second:.2f} samples/s with "
        f"{engines}, {100 * speed.occupancy:.0f}% full, over {speed.samples} samples "
        f"in {format_seconds(speed.seconds)}; plus {format_seconds(speed.startup_seconds)} of start-up"
    )


def _describe_lengths(lengths: "LengthSummary") -> str:
    spread = ", ".join(f"{name} {count}" for name, count in lengths.quantiles.items())
    cut = f"{100 * lengths.truncated:.1f}% cut off at max_tokens"
    return f"answers: {spread} tokens, {lengths.mean:.1f} on average; {cut}"


def _describe_failures(found: "Probe") -> str:
    failed = sum(found.failures.values())
    codes = "".join(f", {code} {count}" for code, count in found.failures.items())
    return f"failures: {failed} of {found.known}{codes}"


def _describe_estimate(estimate: "Estimate", hours_of: str) -> str:
    text = f"{estimate.samples} samples, {format_span(estimate.tokens)} tokens"
    if estimate.seconds is None or estimate.hours is None:
        return text
    hours = format_span(estimate.hours)
    return f"{text}, {format_duration(estimate.seconds)}, {hours} {hours_of}-hours"


def format_duration(seconds: "Span") -> str:
    """Return a range of seconds as text."""
    low, high = (format_seconds(end) for end in (seconds.low, seconds.high))
    return low if low == high else f"{low} to {high}"


def format_span(span: "Span") -> str:
    """Return a range of numbers as text."""
    low, high = _format_number(span.low), _format_number(span.high)
    return low if low == high else f"{low} to {high}"


def _format_number(number: float) -> str:
    if 0 < number < 0.01:
        return "under 0.01"
    return f"{number:,.0f}" if number >= 100 or number == int(number) else f"{number:.2g}"
