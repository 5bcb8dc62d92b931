"""`synthia-batch plan` and `validate`: forecast and check a job without running it."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any

import typer

from synthia_batch.cli.flags import JobFlags
from synthia_batch.core.formatting import encode_json
from synthia_batch.core.terminal import show

if TYPE_CHECKING:
    from pathlib import Path

    from synthia_batch.job.loading.layer import Layer
    from synthia_batch.job.loading.pipeline_file import Pipeline
    from synthia_batch.job.resolved import ResolvedJob
    from synthia_batch.operations.disk_usage import DiskUsage
    from synthia_batch.operations.forecast import Forecast, FoundRows
    from synthia_batch.operations.pipeline_forecast import PipelineForecast
    from synthia_batch.operations.pipeline_probe import PipelineProbe
    from synthia_batch.operations.probe import Probe


MOST_FILES = 50
"""Input files listed in a plan; --json lists all."""
HereFlag = Annotated[
    bool, typer.Option("--here", help="Refuse a job whose model or engines this machine has no room for.")
]
LATER_TURNS = "only the prompts of first turns are known, since later ones contain answers"


def plan(
    flags: JobFlags,
    as_json: Annotated[bool, typer.Option("--json", help="Print it as JSON.")] = False,
    shows_all: Annotated[bool, typer.Option("--all", help="Also show keys with default values.")] = False,
    probe: Annotated[
        int | None,
        typer.Option(
            min=1,
            metavar="N",
            help="Generate N samples from across the job, and estimate the whole job from them. They "
            "count as done when the run starts. Of a pipeline, carry its first N rows through all stages; "
            "its run makes them anew.",
        ),
    ] = None,
    here: HereFlag = False,
) -> None:
    """Show a job's settings with their origins, its size, token counts and disk usage."""
    print_plan(flags, as_json, probe, shows_defaults=shows_all, here=here)


def validate(flags: JobFlags, here: HereFlag = False) -> None:
    """Check a job and every row of its input; list all faults."""
    from synthia_batch.core.formatting import format_count
    from synthia_batch.operations.forecast import check_input

    layers = flags.read_layers()
    pipeline = flags.find_pipeline(layers)
    if pipeline is not None:
        _refuse_here(flags, here)
        _validate_stages(pipeline, layers[:-1], flags.job_file)
        return
    job = _resolve(layers, here=here, needs_model=here)
    rows = check_input(job)
    names = [str(file.shown).encode(errors="backslashreplace").decode() for file in job.inputs]
    name = names[0] if len(names) == 1 else f"{names[0]} and {len(names) - 1} more"
    later = f"; {LATER_TURNS}" if job.plan.plays_turns else ""
    show(f"{name}: {format_count(rows, 'row')}, no faults{later}")


def _refuse_here(flags: JobFlags, here: bool) -> None:
    """Refuse `here`: a later stage is resolved only once those before it are complete."""
    if here:
        raise typer.BadParameter(
            f"--here takes a single job; `synthia-batch doctor {flags.job_file}` checks each stage"
        )


def _validate_stages(pipeline: "Pipeline", flags: "Sequence[Layer]", path: "Path") -> None:
    from synthia_batch.core.formatting import format_count
    from synthia_batch.operations.pipeline_forecast import forecast_pipeline

    found = forecast_pipeline(pipeline, flags, needs_model=False)
    rows = format_count(found.first.rows, "row")
    show(f"{path}: {len(found.stages)} stages, no faults in them or in {rows} of the first")


def print_plan(
    flags: JobFlags,
    as_json: bool,
    probe_samples: int | None = None,
    *,
    shows_defaults: bool = False,
    here: bool = False,
) -> None:
    """Print the forecast of the job in `flags`, and an estimate from `probe_samples` of its samples."""
    from synthia_batch.operations.forecast import forecast_job

    layers = flags.read_layers()
    pipeline = flags.find_pipeline(layers)
    if pipeline is not None:
        _refuse_here(flags, here)
        _print_stages(pipeline, layers[:-1], as_json, probe_samples, shows_defaults=shows_defaults)
        return
    job = _resolve(layers, here=here, needs_model=here or probe_samples is not None)
    forecast = forecast_job(job)
    values = forecast.to_dict()
    if not as_json:
        show(*_list_settings(forecast, shows_defaults), "", *_list_facts(forecast), sep="\n", flush=True)
    found: Probe | None = None
    if probe_samples is not None:
        from synthia_batch.cli.commands.probe import describe_probe, probe, probe_to_dict

        found = probe(job, probe_samples)
        values["probe"] = probe_to_dict(found)
        if not as_json:
            show(f"\n{describe_probe(found)}")
    if as_json:
        show(encode_json(values, indent=2))
    if found is not None and found.exit_code:
        raise typer.Exit(found.exit_code)


def _print_stages(
    pipeline: "Pipeline",
    flags: "Sequence[Layer]",
    as_json: bool,
    probe_rows: int | None,
    *,
    shows_defaults: bool,
) -> None:
    """Print the forecast of the pipeline: its stages, then the first one's.

    With `probe_rows`, also an estimate of the whole from so many rows.
    """
    from synthia_batch.operations.pipeline_forecast import forecast_pipeline

    found = forecast_pipeline(pipeline, flags, needs_model=probe_rows is not None)
    values = {
        "name": found.name,
        "stages": [stage.to_dict() for stage in found.stages],
        "first": found.first.to_dict(),
    }
    if not as_json:
        _show_stages(found, shows_defaults)
    probed: PipelineProbe | None = None
    if probe_rows is not None:
        from synthia_batch.cli.commands.stages import describe_stages, probe_stages, probe_to_dict

        probed = probe_stages(pipeline, flags, found, probe_rows)
        values["probe"] = probe_to_dict(probed)
        if not as_json:
            show(f"\n{describe_stages(probed, probe_rows)}")
    if as_json:
        show(encode_json(values, indent=2))
    if probed is not None:
        from synthia_batch.cli.commands.stages import exit_as_run

        exit_as_run(probed.trial)


def _show_stages(found: "PipelineForecast", shows_defaults: bool) -> None:
    show(f"{found.name}: {len(found.stages)} stages; what later ones have depends on those before")
    width = max(len(stage.name) for stage in found.stages) + 2
    for number, stage in enumerate(found.stages):
        own = "reads its own input" if number else f"{found.first.rows:,} rows"
        reads = f"reads {stage.reads}" if stage.reads is not None else own
        most = "up to " if number else ""
        requests = f" of up to {stage.requests:,} answers" if stage.requests > stage.samples else ""
        show(f"{stage.name:<{width}}{reads}, {most}{stage.samples:,} samples{requests}, {stage.does}")
    show("", f"the stage {found.stages[0].name}:", sep="\n")
    show(*_list_settings(found.first, shows_defaults), "", *_list_facts(found.first), sep="\n", flush=True)


def _resolve(layers: "Sequence[Layer]", *, here: bool, needs_model: bool) -> "ResolvedJob":
    """Return the job, refused if it asks to fit `here` and does not."""
    from synthia_batch.runner.memory_fit import refuse_without_room
    from synthia_batch.runner.resolve import resolve_job

    job = resolve_job(layers, needs_model=needs_model)
    if here:
        refuse_without_room(job)
    return job


def _list_settings(forecast: "Forecast", shows_defaults: bool) -> list[str]:
    shown = {
        key: entry for key, entry in forecast.settings.items() if shows_defaults or _is_informative(entry)
    }
    width = max((len(key) for key in shown), default=0)
    lines = [f"{key:<{width}}  {_describe_setting(key, entry)}" for key, entry in shown.items()]
    folded = len(forecast.settings) - len(shown)
    return [*lines, f"{folded} more keys have default values; show them with --all"] if folded else lines


def _is_informative(entry: Mapping[str, Any]) -> bool:
    return entry["origin"] != "default" or entry.get("resolved") not in (None, [])


def _list_facts(forecast: "Forecast") -> list[str]:
    values: dict[str, Any] = forecast.to_dict()
    names = ("directory", "fingerprint", "model", "rows", "samples", "shards", "longest_output_tokens")
    shown = names[2:] if forecast.unknown else names
    lines = [f"{name.replace('_', ' ')}: {values[name]}" for name in shown]
    lines += [f"unknown here: {text}" for text in forecast.unknown]
    lines += [f"sends {use.variable} to {use.host} ({use.key})" for use in forecast.secrets]
    if len(forecast.files) > 1:
        lines.append(f"files: {len(forecast.files)}, in this order:")
        lines += [f"  {file.name} ({file.rows} rows)" for file in forecast.files[:MOST_FILES]]
        lines += [f"  ... ({len(forecast.files) - MOST_FILES} more)"] * (len(forecast.files) > MOST_FILES)
    if forecast.template_date is not None:
        lines.append(f"template date: the chat template is told that today is {forecast.template_date}")
    tokens = values["prompt_tokens"].items()
    lines.append(
        f"prompt {forecast.prompt_unit}: "
        + ", ".join(f"{name.replace('_', ' ')} {count}" for name, count in tokens)
    )
    if forecast.later_turns:
        lines.append(f"later turns: {forecast.later_turns}; {LATER_TURNS}")
    if forecast.strict_cost is not None:
        lines.append(f"determinism: {forecast.strict_cost}")
    for name, found in (("too long", forecast.rows_too_long), ("repeated", forecast.rows_repeated)):
        if name == "too long" and forecast.unknown:
            continue
        lines.append(f"rows {name}: {_describe_rows(found)}")
    lines += [_describe_disk(forecast.disk), _describe_memory(forecast)]
    return [*lines, *(f"warning: {text}" for text in forecast.warnings)]


def _describe_rows(found: "FoundRows") -> str:
    if not found.rows:
        return "none"
    more = " ..." if found.rows > len(found.first) else ""
    return f"{found.rows}: {', '.join(found.first)}{more}"


def _describe_disk(disk: "DiskUsage") -> str:
    from synthia_batch.core.formatting import format_bytes

    least, most, free = (format_bytes(n) for n in (disk.least_bytes, disk.most_bytes, disk.free_bytes))
    return f"disk: needs {least} to {most}, {free} free at {disk.place}"


def _describe_memory(forecast: "Forecast") -> str:
    from synthia_batch.core.formatting import format_bytes

    most = format_bytes(forecast.publication_bytes)
    return f"driver memory: up to {most} to publish a file of {forecast.file_samples:,} samples"


def _describe_setting(key: str, entry: Mapping[str, Any]) -> str:
    from synthia_batch.job.units import spell_duration

    value = entry["value"]
    if key == "deadline" and value is not None:
        value = spell_duration(value)
    resolved = f"{entry['resolved']!s}  ({entry['resolved_by']})" if "resolved" in entry else ""
    if resolved and entry["origin"] == "default":
        return resolved
    return f"{value!s}  ({entry['origin']}){f' -> {resolved}' if resolved else ''}"
