"""Writes the pages of docs/reference/ that are lists: the code has what they say."""

import copy
import inspect
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, get_args

import typer

from synthia_batch import errors
from synthia_batch.cli.app import app
from synthia_batch.cli.flags import list_job_flags
from synthia_batch.cli.help import COMMAND_GROUPS
from synthia_batch.core.failure_codes import FAILURE_CODES
from synthia_batch.core.shutdown import DrainReason
from synthia_batch.job.engine_settings import ENGINE_SETTINGS
from synthia_batch.job.keys import walk_keys
from synthia_batch.job.loading.json_schema import make_schema
from synthia_batch.job.markers import Flag, Panel
from synthia_batch.job.sections import EngineKind
from synthia_batch.job.select import Combine, Combined, Decontaminate, Dedup, Select
from synthia_batch.storage.parts.schema import DATA_COLUMNS, FAILED_COLUMNS, OutputColumn

FOLDER = Path(__file__).parent.parent / "docs" / "reference"
NOTE = "Written by `tools/reference_pages.py` from the code."
WIDTH = 100
"""Characters of a line of help."""
TYPES = {"string": "text", "number": "number", "integer": "integer", "boolean": "true or false"}
OF_ROWS = {
    "input.columns.logprobs": "`logprobs` in a request of an OpenAI batch file",
    "input.columns.message_fields": "`input.message_fields`",
    "input.columns.final": "`input.final_assistant: continue`",
}
"""What the user sets for a column that depends on the input's columns, by its key in the identity."""
SELECT_SECTIONS = {
    "select": Select,
    "select.combine": Combine,
    "select.combine.NAME": Combined,
    "select.dedup": Dedup,
    "select.decontaminate": Decontaminate,
}
"""The keys of a selection, by the section that has them."""
Schema = Mapping[str, Any]


def render_cli() -> str:
    """Return the page of commands: the help of each."""
    group: Any = typer.main.get_command(app)
    parts = [
        f"# Command line\n\n{NOTE} `synthia-batch COMMAND --help` prints the same. The flags of a job are "
        "listed once, under `run`; other commands that take a job have them, too.\n"
    ]
    for title, names in COMMAND_GROUPS.items():
        parts.append(f"## {title}\n")
        for name in names:
            command = copy.copy(group.commands[name])
            if name != "run":
                command.params = [one for one in command.params if not _is_of_job(one)]
            context = typer.Context(command, info_name=f"synthia-batch {name}", terminal_width=WIDTH)
            parts.append(f"### {name}\n\n```text\n{command.get_help(context).rstrip()}\n```\n")
    return "\n".join(parts)


def render_job_file() -> str:
    """Return the page of keys: a table for each section of a job."""
    flags = {key.name: name.replace("_", "-") for name, (key, _) in list_job_flags().items()}
    schema = make_schema()
    parts = [
        f"# Job file\n\n{NOTE} Every key can also be given as `--set KEY=VALUE`; `synthia-batch schema` "
        "prints a JSON Schema for editors.\n\n"
        "[Jobs](../how-to/jobs.md) explains how keys, flags, variables and presets combine, "
        "[Determinism](../explanation/determinism.md) which keys may change when a run is resumed.\n"
    ]
    for name, section in _list_sections(schema):
        title = f"`{name}`" if name else "Top level"
        parts.append(f"## {title}\n\n{_render_keys(section, schema, flags, f'{name}.' if name else '')}")
    for kind, settings in zip(get_args(EngineKind), ENGINE_SETTINGS, strict=True):
        section = settings.model_json_schema()
        keys = _render_keys(section, section, flags, "engine.")
        parts.append(f"## `engine` with `kind: {kind}`\n\n{inspect.getdoc(settings)}\n\n{keys}")
    return "\n".join(parts)


def render_pipeline_file() -> str:
    """Return the page of a job file with stages."""
    parts = []
    for key, section in SELECT_SECTIONS.items():
        schema = section.model_json_schema()
        keys = _render_keys(schema, schema, {}, f"{key}.")
        parts.append(f"## `{key}`\n\n{inspect.getdoc(section)}\n\n{keys}")
    return (
        f"# Pipeline file\n\n{NOTE} [Stages and selections](../how-to/selection.md) explains it.\n\n"
        "| key | meaning |\n|---|---|\n"
        "| `name` | names the pipeline's directory; the file's name if it is not set |\n"
        "| `output` | the directory; also `-o` |\n"
        "| `stages` | the stages in order, each with the keys below |\n"
        "| any other key of a [job](job-file.md) | the default of every stage that generates; `input` only "
        "of a stage that reads no other |\n\n"
        "## A stage\n\n| key | meaning |\n|---|---|\n"
        "| `name` | letters, digits and `_`; its samples stand under this name in later stages |\n"
        "| `input.stage` | the stage that it reads. Default: the one before, unless `input.path` is set |\n"
        "| `select` | makes it a selection, with the keys below |\n"
        "| any other key of a job | as in a job file; `output` belongs beside `stages` |\n\n"
        + "\n".join(parts)
    )


def render_output_columns() -> str:
    """Return the page of columns."""
    return (
        f"# Output columns\n\n{NOTE}\n\n## `data/`: finished samples\n\n{_render_columns(DATA_COLUMNS)}\n"
        "Columns that are kept from the input (`input.keep_columns`) follow, with their own types; then the "
        "values that a selection combines (`select.combine`).\n\n"
        f"## `failed/`: failed samples\n\n{_render_columns(FAILED_COLUMNS)}"
    )


def render_failure_codes() -> str:
    """Return the page of failure codes."""
    rows = "".join(f"| `{code}` | {meaning} |\n" for code, meaning in FAILURE_CODES.items())
    return (
        f"# Failure codes\n\n{NOTE} The column `code` of `failed/`; codes are stable. "
        "[Fix failures](../how-to/fix-failures.md) says what to do.\n\n"
        f"| code | the sample failed because |\n|---|---|\n{rows}"
    )


def render_exit_codes() -> str:
    """Return the page of exit codes."""
    causes: dict[int, list[str]] = {}
    for error in _list_errors(errors.SynthiaBatchError):
        causes.setdefault(error.exit_code, []).append(f"`{error.__name__}`")
    for reason in DrainReason:
        causes.setdefault(reason.exit_code, []).append(reason.label)
    rows = "".join(
        f"| {code} | {meaning} | {', '.join(causes.get(code, []))} |\n"
        for code, meaning in errors.EXIT_CODES.items()
    )
    return (
        f"# Exit codes\n\n{NOTE} The third column names the errors of `synthia_batch.errors` and the reasons "
        f"for draining that lead to it.\n\n| code | meaning | from |\n|---|---|---|\n{rows}"
    )


PAGES: Mapping[str, Callable[[], str]] = {
    "cli.md": render_cli,
    "job-file.md": render_job_file,
    "pipeline-file.md": render_pipeline_file,
    "output-columns.md": render_output_columns,
    "failure-codes.md": render_failure_codes,
    "exit-codes.md": render_exit_codes,
}


def _is_of_job(parameter: Any) -> bool:
    return getattr(parameter, "rich_help_panel", None) in get_args(Panel)


def _list_errors(error: type[errors.SynthiaBatchError]) -> Iterator[type[errors.SynthiaBatchError]]:
    """Yield the errors with an exit code of their own: the others never end a command."""
    for other in error.__subclasses__():
        if other.exit_code != errors.SynthiaBatchError.exit_code:
            yield other
        yield from _list_errors(other)


def _list_sections(schema: Schema) -> Iterator[tuple[str, Schema]]:
    """Yield the top level, each section by its key, and what has keys of its own in a mapping."""
    yield "", schema
    for name, entry in schema["properties"].items():
        if "$ref" not in entry:
            continue
        section = _follow(entry, schema)
        yield name, section
        for key, values in section["properties"].items():
            for kind in values.get("anyOf", ()):
                if "$ref" in kind:
                    yield f"{name}.{key}", _follow(kind, schema)
            for kind in values.get("patternProperties", {}).values():
                if "$ref" in kind:
                    yield f"{name}.{key}.NAME", _follow(kind, schema)


def _follow(entry: Schema, schema: Schema) -> Schema:
    """Return the definition that the entry refers to."""
    found: Schema = schema["$defs"][entry["$ref"].rpartition("/")[2]]
    return found


def _render_keys(section: Schema, schema: Schema, flags: Mapping[str, str], prefix: str) -> str:
    rows = "| key | value | meaning |\n|---|---|---|\n"
    for name, entry in section["properties"].items():
        key = f"{prefix}{name}"
        if "$ref" in entry:
            text = {**_follow(entry, schema), **entry}["description"]
            rows += f"| `{name}` | section | {text} See [below](#{name}). |\n"
            continue
        meaning = _escape(" ".join(entry.get("description", _find_help(key)).split()))
        default = entry.get("default")
        value = _describe(entry, schema) + (
            "" if default in (None, [], {}) else f"; default `{_show(default)}`"
        )
        flag = f" Flag: `--{flags[key]}`" if key in flags else ""
        rows += f"| `{name}` | {value} | {meaning}{flag} |\n"
    return rows


def _find_help(key: str) -> str:
    """Return the help of the key's flag: vLLM's own settings have no other text here."""
    flags = (found.find(Flag) for found in walk_keys() if found.name == key)
    return next((flag.help for flag in flags if flag is not None), "a setting of vLLM's `EngineArgs`")


def _describe(entry: Schema, schema: Schema) -> str:
    """Return in words what a value may be."""
    if "$ref" in entry:
        return _describe(_follow(entry, schema), schema)
    if "anyOf" in entry:
        kinds = [_describe(kind, schema) for kind in entry["anyOf"] if kind.get("type") != "null"]
        return ", or ".join(dict.fromkeys(kinds))
    if "enum" in entry:
        return ", ".join(f"`{value}`" for value in entry["enum"])
    if "const" in entry:
        return f"`{entry['const']}`"
    kind = entry.get("type")
    if kind == "array":
        return f"list of {_describe(entry.get('items', {}), schema)}"
    if kind == "object":
        return "mapping"
    return TYPES.get(str(kind), "any value") + _describe_bounds(entry)


def _describe_bounds(entry: Schema) -> str:
    words = (("minimum", "at least"), ("exclusiveMinimum", "above"), ("maximum", "at most"))
    words += (("exclusiveMaximum", "below"),)
    bounds = [f"{text} {entry[name]:,}" for name, text in words if name in entry]
    return f", {', '.join(bounds)}" if bounds else ""


def _render_columns(columns: tuple[OutputColumn[Any], ...]) -> str:
    rows = "| column | type | only if | meaning |\n|---|---|---|---|\n"
    for column in columns:
        settings = [setting for setting in (column.present_if, column.or_if) if setting is not None]
        needed = " or ".join(OF_ROWS.get(setting, f"`{setting}`") for setting in settings)
        rows += f"| `{column.name}` | `{column.type}` | {needed} | {_escape(column.meaning)} |\n"
    return rows


def _show(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, list):
        return ", ".join(map(str, value))
    return f"{value:,}" if isinstance(value, int) else str(value)


def _escape(text: str) -> str:
    return text.replace("|", "\\|")


if __name__ == "__main__":
    for name, render in PAGES.items():
        (FOLDER / name).write_text(render())
