"""The flags of a job, built from the markers on its schema, for every command that takes one.

The schema is imported only once a command with such flags is called: `--help` does not need it.
"""

import copy
import inspect
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, get_args, get_origin, get_type_hints

import typer

from synthia_batch.job.markers import Flag, Panel

if TYPE_CHECKING:
    from synthia_batch.job.keys import Key
    from synthia_batch.job.loading.merge import Layer
    from synthia_batch.job.loading.pipeline_file import Pipeline

INPUT_HELP = (
    "Files, directories, patterns, addresses (s3://, gs://, https://, hf://) or - for stdin: JSONL, Parquet, "
    "CSV, also packed."
)
_JOB_FILE_SUFFIXES = (".yaml", ".yml")
_KEYWORD = inspect.Parameter.KEYWORD_ONLY


@dataclass(frozen=True, slots=True)
class JobFlags:
    """The values of the flags of a job by parameter name; None or empty if a flag is not set.

    A command whose first parameter is `flags: JobFlags` gets all these flags.
    """

    values: Mapping[str, Any]

    def read_layers(self) -> "list[Layer]":
        """Return the layers of flags, environment and job file, the strongest first."""
        from synthia_batch.job.dotted import merge_values, nest
        from synthia_batch.job.loading.job_file import read_job_file
        from synthia_batch.job.loading.merge import Layer, parse_assignment, read_environment

        paths, job_file = self._split_arguments()
        explicit: dict[str, Any] = {} if paths is None else nest("input.path", paths)
        for name, (key, flag) in list_job_flags().items():
            value = self.values[name]
            if value is not None and value != []:
                explicit = merge_values(explicit, nest(key.name, _parse(flag, value)))
        for assignment in self.values["settings"] or []:
            explicit = merge_values(explicit, parse_assignment(assignment))
        layers = [Layer(origin="flag", values=explicit), read_environment(os.environ)]
        return [*layers, read_job_file(job_file)] if job_file else layers

    def find_pipeline(self, layers: "Sequence[Layer]") -> "Pipeline | None":
        """Return the pipeline in the last of `layers`, None if it is a single job or there is no job file."""
        from synthia_batch.job.loading.pipeline_file import STAGES, read_pipeline

        _, job_file = self._split_arguments()
        if job_file is None or not layers[-1].sets(STAGES):
            return None
        return read_pipeline(layers[-1], job_file)

    @property
    def job_file(self) -> Path:
        """The job file that is named. Raises ValueError if there is none."""
        _, job_file = self._split_arguments()
        if job_file is None:
            raise ValueError("no job file is named")
        return job_file

    def _split_arguments(self) -> tuple[str | list[str] | None, Path | None]:
        """Return the input's paths and the job file, which may be an argument or a flag."""
        named, job = self.values["input_or_job"] or [], self.values["job"]
        jobs = [Path(name) for name in named if name.lower().endswith(_JOB_FILE_SUFFIXES)]
        jobs += [job] if job is not None else []
        if len(jobs) > 1:
            raise typer.BadParameter(f"two job files: {jobs[0]} and {jobs[1]}; name one")
        paths = [name for name in named if not name.lower().endswith(_JOB_FILE_SUFFIXES)]
        return (paths[0] if len(paths) == 1 else paths or None), next(iter(jobs), None)


@cache
def list_job_flags() -> "Mapping[str, tuple[Key, Flag]]":
    """Return the keys that have a flag, by the flag's parameter name, in the order of `--help`."""
    from synthia_batch.job.keys import walk_keys

    panels = get_args(Panel)
    found = [(key, flag) for key in walk_keys() if (flag := key.find(Flag)) is not None]
    found.sort(key=lambda pair: (panels.index(pair[1].panel), pair[1].order))
    return {str(key.flag_name).replace("-", "_"): (key, flag) for key, flag in found}


def add_job_flags(command: Callable[..., None]) -> Callable[..., None]:
    """Return `command` with the flags of a job in place of a first parameter `flags: JobFlags`.

    A command without one is returned as it is. A short name such as -n belongs to the command's own
    flag if both have it.
    """
    own_hints = get_type_hints(command, include_extras=True)
    if JobFlags not in own_hints.values():
        return command
    taken = {name for hint in own_hints.values() for name in _list_names(hint)}
    shared = [
        parameter.replace(annotation=_without_names(parameter.annotation, taken))
        for parameter in _make_shared_parameters()
    ]
    own = [
        parameter.replace(kind=_KEYWORD, annotation=own_hints[parameter.name])
        for parameter in list(inspect.signature(command).parameters.values())[1:]
    ]

    def with_job_flags(**values: Any) -> None:
        flags = JobFlags({parameter.name: values.pop(parameter.name) for parameter in shared})
        command(flags=flags, **values)

    with_job_flags.__name__ = command.__name__
    with_job_flags.__doc__ = command.__doc__
    with_job_flags.__signature__ = inspect.Signature([*shared, *own])  # type: ignore[attr-defined]
    with_job_flags.__annotations__ = {parameter.name: parameter.annotation for parameter in (*shared, *own)}
    return with_job_flags


def _make_shared_parameters() -> list[inspect.Parameter]:
    """Return the parameters that every such command has: INPUT, --job, --set, and the flags of keys."""
    argument = typer.Argument(
        metavar="INPUT|JOB.yaml", help=f"A job file, or {INPUT_HELP[0].lower()}{INPUT_HELP[1:]}"
    )
    job = typer.Option("--job", "-j", help="A job file, with INPUT or without.", rich_help_panel="Job")
    settings = typer.Option(
        "--set", metavar="KEY=VALUE", help="Any key of a job file. Repeatable.", rich_help_panel="Job"
    )
    of_keys = [
        _make_parameter(name, list[str] if flag.takes is list else flag.takes, _make_option(key, flag))
        for name, (key, flag) in list_job_flags().items()
    ]
    return [
        _make_parameter("input_or_job", list[str], argument),
        _make_parameter("job", Path, job),
        *of_keys,
        _make_parameter("settings", list[str], settings),
    ]


def _make_parameter(name: str, kind: Any, declared: Any) -> inspect.Parameter:
    return inspect.Parameter(name, _KEYWORD, default=None, annotation=Annotated[kind | None, declared])


def _make_option(key: "Key", flag: Flag) -> Any:
    names = [f"--{key.flag_name}", *([flag.short] if flag.short else [])]
    return typer.Option(
        *names,
        metavar=flag.metavar,
        help=flag.help,
        rich_help_panel=flag.panel,
        autocompletion=_complete_values(key),
    )


def _complete_values(key: "Key") -> Callable[[str], list[str]] | None:
    """Return the shell completion of a key with a closed set of values, None for any other key."""
    if key.name != "preset" and get_origin(key.field.annotation) is not Literal:
        return None

    def complete(incomplete: str) -> list[str]:
        from synthia_batch.job.presets import list_presets

        known = list_presets() if key.name == "preset" else get_args(key.field.annotation)
        return [word for word in known if word.startswith(incomplete)]

    return complete


def _list_names(hint: Any) -> tuple[str, ...]:
    """Return the names that a flag is declared with; none if Typer derives one from the parameter's."""
    return tuple(
        name
        for data in getattr(hint, "__metadata__", ())
        for name in getattr(data, "param_decls", None) or ()
    )


def _without_names(hint: Any, taken: set[str]) -> Any:
    if taken.isdisjoint(_list_names(hint)):
        return hint
    option = copy.copy(hint.__metadata__[0])
    option.param_decls = tuple(name for name in option.param_decls if name not in taken)
    return Annotated[hint.__origin__, option]


def split_names(text: str) -> list[str]:
    """Return the names in a comma-separated list such as `a, b,c`."""
    return [name.strip() for name in text.split(",") if name.strip()]


def _parse(flag: Flag, value: Any) -> Any:
    """Return a flag's value in the shape of its key."""
    if flag.parts == "pairs":
        return dict(split_pair(text, flag.name or "", flag.metavar or "") for text in value)
    if flag.parts == "names":
        return [name for text in ([value] if isinstance(value, str) else value) for name in split_names(text)]
    return str(value) if isinstance(value, Path) else value


def split_pair(text: str, flag: str, metavar: str) -> tuple[str, str]:
    """Return the name and the value of a `flag` such as OLD=NEW."""
    name, equals, value = text.partition("=")
    if not equals or not name or not value:
        raise typer.BadParameter(f"--{flag} {text}: write it as {metavar}")
    return name, value
