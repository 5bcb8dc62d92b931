"""`synthia-batch plan` and `validate`: what a job would do, without doing it."""

import json
from typing import TYPE_CHECKING, Annotated, Any

import typer

from synthia_batch.cli.flags import JobFlags, takes_job_flags

if TYPE_CHECKING:
    from collections.abc import Mapping

    from synthia_batch.forecast import Forecast


LATER_TURNS = "only the prompts of first turns are known, later ones hold the answers before them"


@takes_job_flags
def plan(
    flags: JobFlags,
    as_json: Annotated[bool, typer.Option("--json", help="Print it as JSON.")] = False,
    probe: Annotated[
        int | None,
        typer.Option(
            min=1,
            metavar="N",
            help="Make N samples from all over the job, and say by them how long all will take. They "
            "count as done when the run starts.",
        ),
    ] = None,
) -> None:
    """Show what a job would run, where each of its values came from, and its prompts' token counts."""
    print_plan(flags, as_json, probe)


@takes_job_flags
def validate(flags: JobFlags) -> None:
    """Check a job and every row of its input; list the faults."""
    from synthia_batch.display import Display
    from synthia_batch.forecast import check_input
    from synthia_batch.resolve import resolve_job

    job = resolve_job(flags.read_layers(), Display().say)
    rows = check_input(job)
    name = str(job.input_path).encode(errors="backslashreplace").decode()  # It may be no UTF-8.
    print(f"{name}: {rows} rows, no faults{f'; {LATER_TURNS}' if job.plan.plays_turns else ''}")


def print_plan(flags: JobFlags, as_json: bool, probe_samples: int | None = None) -> None:
    """Print the forecast of the job that `flags` say, and what so many of its samples say of the rest."""
    from synthia_batch.display import Display
    from synthia_batch.forecast import forecast_job
    from synthia_batch.resolve import resolve_job

    job = resolve_job(flags.read_layers(), Display().say)
    forecast = forecast_job(job)
    values = forecast.to_dict()
    if not as_json:
        print(_describe(forecast), flush=True)
    if probe_samples is not None:
        from synthia_batch.cli.probe import describe_probe, probe, probe_to_dict

        found = probe(job, probe_samples)
        values["probe"] = probe_to_dict(found)
        if not as_json:
            print(f"\n{describe_probe(found)}")
    if as_json:
        print(json.dumps(values, indent=2, ensure_ascii=False))


def _describe(forecast: "Forecast") -> str:
    values: dict[str, Any] = forecast.to_dict()
    settings, tokens, later_turns = (values.pop(key) for key in ("settings", "prompt_tokens", "later_turns"))
    width = max(len(key) for key in settings)
    lines = [f"{key:<{width}}  {_describe_setting(entry)}" for key, entry in settings.items()]
    lines += ["", *(f"{key.replace('_', ' ')}: {value}" for key, value in values.items())]
    lines.append("prompt tokens: " + ", ".join(f"{name} {count}" for name, count in tokens.items()))
    if later_turns:
        lines.append(f"later turns: {later_turns}; {LATER_TURNS}")
    return "\n".join(lines)


def _describe_setting(entry: "Mapping[str, Any]") -> str:
    said = f"{entry['value']!s}  ({entry['origin']})"
    return f"{said} -> {entry['resolved']!s}  ({entry['resolved_by']})" if "resolved" in entry else said
