"""`synthia-batch tune`: find the fastest engine settings for a model on this hardware."""

import json
import shlex
import sys
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from typing import TYPE_CHECKING, Annotated, Any

import typer

from synthia_batch.cli.flags import JobFlags
from synthia_batch.core.formatting import encode_json
from synthia_batch.core.terminal import show

if TYPE_CHECKING:
    from synthia_batch.job.loading.layer import Layer
    from synthia_batch.job.loading.pipeline_file import Pipeline
    from synthia_batch.operations.tune import Tuning


def tune(
    flags: JobFlags,
    budget: Annotated[str, typer.Option(help="Stop measuring after this time: 90s, 10m, 1h.")] = "10m",
    prompts: Annotated[
        int | None, typer.Option(min=1, help="Prompts per measurement. [enough for two batches]")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print it as JSON.")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="No progress.")] = False,
) -> None:
    """Measure a few engine settings on prompts from the input; later runs of the model use the best.

    Takes the flags of `run`. Engine settings in flags stay fixed. Touches no run directory. Of a pipeline,
    measures its first stage; stages with the same model use the same settings.
    """
    from synthia_batch.core.log import mute_log
    from synthia_batch.operations.tune import tune_job
    from synthia_batch.runner.resolve import resolve_job

    budget_seconds = _parse_budget(budget)
    layers = flags.read_layers()
    pipeline = flags.find_pipeline(layers)
    if pipeline is not None:
        layers = _take_first(pipeline, layers[:-1])
    job = resolve_job(layers, uses_tuned=False)
    with mute_log("synthia_batch.operations.tune") if quiet else nullcontext():
        tuning = tune_job(job, budget_seconds, prompts)
    show(encode_json(_to_dict(tuning)) if as_json else _describe(tuning))
    _print_messages(tuning)
    if tuning.is_interrupted and tuning.stopped is not None:
        raise typer.Exit(tuning.stopped.exit_code)


def _take_first(pipeline: "Pipeline", flags: "Sequence[Layer]") -> "list[Layer]":
    """Return the layers of the first stage, and say that it is measured."""
    from synthia_batch.runner.pipeline_check import check_pipeline

    check_pipeline(pipeline, flags)
    first = pipeline.stages[0]
    show(f"measuring the first stage, {first.name}; stages with its model use what is found", file=sys.stderr)
    return [*flags, first.layer]


def _describe(tuning: "Tuning") -> str:
    from synthia_batch.operations.tune import describe_settings

    if not tuning.trials:
        return "nothing was measured"
    first = tuning.trials[0].speed
    rows = [
        (describe_settings(trial.settings), f"{trial.speed:.1f}", f"{trial.speed / first:.2f}")
        if trial.reason is None
        else (describe_settings(trial.settings), "failed", trial.reason)
        for trial in tuning.trials
    ]
    width = max(len(name) for name, _, _ in rows)
    lines = [f"{'settings':<{width}}  {'tokens/s':>9}  relative"]
    lines += [f"{name:<{width}}  {speed:>9}  {relative}" for name, speed, relative in rows]
    best = " ".join(_format_flags(tuning.best.settings))
    return "\n".join([*lines, f"best: {best or describe_settings({})}"])


def _to_dict(tuning: "Tuning") -> dict[str, Any]:
    first = tuning.trials[0].speed if tuning.trials else 0.0
    return {
        "trials": [
            {
                "settings": dict(trial.settings),
                "tokens_per_second": trial.tokens_per_second,
                "relative": round(trial.speed / first, 3),
                "reason": trial.reason,
            }
            for trial in tuning.trials
        ],
        "best": dict(tuning.best.settings) if tuning.trials else None,
        "flags": _format_flags(tuning.best.settings) if tuning.trials else [],
        "remembered": None if tuning.kept is None else dict(tuning.kept),
        "stopped": tuning.stopped and tuning.stopped.label,
    }


def _print_messages(tuning: "Tuning") -> None:
    if tuning.stopped is not None:
        why = f"on {tuning.stopped.label}" if tuning.is_interrupted else "at the end of the budget"
        show(f"stopped {why}; untried settings may be faster", file=sys.stderr)
    if tuning.kept is None:
        show("no settings were saved", file=sys.stderr)
        return
    if tuning.kept:
        kept = " ".join(_format_flags(tuning.kept))
        show(f"saved: later jobs with this model on this hardware use {kept}", file=sys.stderr)
    else:
        show("saved: later jobs use the default batch size", file=sys.stderr)
    if tuning.kept.keys() != tuning.best.settings.keys():
        show("the other settings are part of a job's identity: pass them as flags if wanted", file=sys.stderr)


def _format_flags(settings: Mapping[str, Any]) -> list[str]:
    flags = []
    for key, value in settings.items():
        text = json.dumps(value) if isinstance(value, dict) else str(value)
        flags.append(f"--set {shlex.quote(f'engine.{key}={text}')}")
    return flags


def _parse_budget(text: str) -> float:
    from synthia_batch.job.units import parse_duration

    try:
        seconds = float(parse_duration(text))
    except ValueError:
        seconds = 0.0
    if not seconds:
        raise typer.BadParameter(f"--budget {text}: expected a duration such as 90s, 10m or 1h30m")
    return seconds
