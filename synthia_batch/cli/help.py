"""Layout of `--help`: flags and commands in groups, examples at the end, plain text without colours."""

import inspect
from collections.abc import Callable, Iterator, Mapping
from typing import Any, ClassVar

import typer
from typer import core

from synthia_batch.cli.flags import add_job_flags

WIDTH = 110
"""Characters of a line of help, if the terminal is that wide."""
OTHER = "Options"
COMMAND_GROUPS = {
    "Before": ("demo", "init", "schema", "presets", "doctor", "validate", "plan", "preview", "tune"),
    "Run": ("run", "status", "failed", "retry"),
    "After": ("report", "verify", "select", "export", "push"),
}
EXAMPLES = {
    "run": (
        "synthia-batch run questions.parquet",
        "synthia-batch run questions.jsonl -m org/model -s synthia -s @persona.txt -n 4 --keep-columns topic",
        "synthia-batch run jobs/overnight.yaml --stop-at 07:00 --max-failures 1%",
        "synthia-batch run questions.jsonl -o s3://bucket/questions",
        "synthia-batch run a.jsonl 'more/*.csv.gz' hf://datasets/me/rows/data --prompt-template ask.jinja",
        "synthia-batch run questions.jsonl --engine scripted --pool local   # a rehearsal without weights",
    ),
    "plan": (
        "synthia-batch plan jobs/quickstart.yaml --all",
        "synthia-batch plan questions.jsonl --probe 200",
    ),
    "preview": ("synthia-batch preview questions.jsonl -s synthia -s none",),
    "demo": ("synthia-batch demo      # in an empty directory",),
    "validate": ("synthia-batch validate questions.jsonl --prompt-column text",),
    "init": ("synthia-batch init questions.jsonl -o jobs/mine.yaml",),
    "schema": ("synthia-batch schema > job.schema.json",),
    "doctor": ("synthia-batch doctor", "synthia-batch doctor questions.jsonl -m migtissera/Synthia-70B-v1.1"),
    "tune": ("synthia-batch tune questions.jsonl --budget 10m",),
    "presets": ("synthia-batch presets synthia-70b-v1.1",),
    "status": ("synthia-batch status outputs/questions-1a2b3c4d",),
    "failed": ("synthia-batch failed outputs/questions-1a2b3c4d",),
    "retry": ("synthia-batch retry outputs/questions-1a2b3c4d --set engine.max_num_seqs=32",),
    "report": ("synthia-batch report outputs/questions-1a2b3c4d",),
    "export": (
        "synthia-batch export outputs/questions-1a2b3c4d --to messages -o train.jsonl.gz",
        "synthia-batch export outputs/questions-1a2b3c4d --to csv > table.csv",
    ),
    "select": (
        "synthia-batch select outputs/judged-1a2b3c4d --where 'judged.json.score >= 7' --limit 1000",
        "synthia-batch select outputs/questions-1a2b3c4d --dedup questions.response --sample 1000",
        "synthia-batch select outputs/judged-1a2b3c4d --combine score=mean:judged.json.score --best score",
    ),
    "push": ("synthia-batch push outputs/questions-1a2b3c4d me/questions --private",),
    "verify": ("synthia-batch verify outputs/questions-1a2b3c4d --rows",),
}
"""The examples at the end of each command's help."""


class GroupedCommand(core.TyperCommand):
    """A command whose flags are listed by group."""

    def format_options(self, ctx: Any, formatter: Any) -> None:
        """Write a section for the arguments and one per group of flags, in the order of the flags."""
        groups: dict[str, list[tuple[str, str]]] = {}
        for parameter in self.get_params(ctx):
            record = parameter.get_help_record(ctx)
            if record is not None:
                is_argument = parameter.param_type_name == "argument"
                # Typer shows a repeatable argument by its Python type.
                record = (record[0].replace(" <list[str]>", "..."), record[1])
                group = getattr(parameter, "rich_help_panel", None) or OTHER
                groups.setdefault("Arguments" if is_argument else group, []).append(record)
        last = groups.pop(OTHER, None)
        for title, records in [*groups.items(), *([(OTHER, last)] if last else [])]:
            with formatter.section(title):
                formatter.write_dl(records)

    def format_epilog(self, ctx: Any, formatter: Any) -> None:
        """Write the examples, ready to be typed."""
        if lines := EXAMPLES.get(self.name or ""):
            with formatter.section("Examples"):
                for line in lines:
                    formatter.write(f"{'':>{formatter.current_indent}}{line}\n")


class CommandTable(Mapping[str, Any]):
    """Commands by name, each built from its function when it is called, so that `--help` builds none."""

    def __init__(self, functions: Mapping[str, Callable[..., None]]) -> None:
        self._functions = functions
        self._built: dict[str, Any] = {}

    def __getitem__(self, name: str) -> Any:
        if name not in self._built:
            self._built[name] = _build_command(self._functions[name])
        return self._built[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._functions)

    def __len__(self) -> int:
        return len(self._functions)

    def summarize(self, name: str) -> str:
        """Return the line of the list of commands for `name`."""
        command = core.TyperCommand(name, help=inspect.getdoc(self._functions[name]))
        return command.get_short_help_str(WIDTH)


def _build_command(function: Callable[..., None]) -> Any:
    """Return the command that calls `function`, with grouped help."""
    single = typer.Typer(add_completion=False, rich_markup_mode=None)
    settings = {"max_content_width": WIDTH}
    single.command(cls=GroupedCommand, context_settings=settings)(add_job_flags(function))
    return typer.main.get_command(single)


class GroupedCommands(core.TyperGroup):
    """The list of `table`, in the order in which the commands are needed."""

    table: ClassVar[CommandTable]

    def __init__(self, **settings: Any) -> None:
        super().__init__(**{**settings, "commands": self.table})

    def list_commands(self, ctx: Any) -> list[str]:
        return [name for names in COMMAND_GROUPS.values() for name in names]

    def format_commands(self, ctx: Any, formatter: Any) -> None:
        for title, names in COMMAND_GROUPS.items():
            with formatter.section(title):
                formatter.write_dl([(name, self.table.summarize(name)) for name in names])
