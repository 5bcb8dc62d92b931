"""The flags that say a job: shared by every command that takes one."""

import copy
import dataclasses
import inspect
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, get_args, get_type_hints

import typer

if TYPE_CHECKING:
    from synthia_batch.job.loading.merge import Layer

INPUT_HELP = (
    "Files, directories, patterns, addresses (s3://, gs://, https://, hf://) or - for stdin: JSONL, Parquet, "
    "CSV, also packed."
)
_JOB_FILE_SUFFIXES = (".yaml", ".yml")


def _offer(name: str) -> Callable[[str], list[str]]:
    """Return what completes the values of the key `name`, for a shell."""

    def complete(incomplete: str) -> list[str]:
        from synthia_batch.job import schema as declared
        from synthia_batch.job.presets import list_presets

        known = list_presets() if name == "Preset" else get_args(getattr(declared, name))
        return [word for word in known if word.startswith(incomplete)]

    return complete


@dataclass(kw_only=True)
class JobFlags:
    """What was said on the command line. None or empty: nothing was."""

    input_or_job: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="INPUT|JOB.yaml", help=f"A job file, or {INPUT_HELP[0].lower()}{INPUT_HELP[1:]}"
        ),
    ] = None
    job: Annotated[Path | None, typer.Option("--job", "-j", help="A job file, with INPUT or without.")] = None
    output: Annotated[
        str | None,
        typer.Option(
            "--output",
            "-o",
            metavar="DIR|URL",
            help="Run directory, s3:// or gs://BUCKET/PREFIX. [outputs/NAME-FINGERPRINT]",
        ),
    ] = None
    state: Annotated[
        Path | None,
        typer.Option(help="Where the run goes on for an output in a store. [outputs/NAME-FINGERPRINT]"),
    ] = None
    model: Annotated[
        str | None, typer.Option("--model", "-m", help="Directory, .gguf file, Hub name or demo. [demo]")
    ] = None
    revision: Annotated[str | None, typer.Option(help="Branch, tag or commit on the Hub.")] = None
    preset: Annotated[
        str | None,
        typer.Option(
            help="What a card recommends; see `presets`. [the model's]", autocompletion=_offer("Preset")
        ),
    ] = None
    chat_template: Annotated[
        Path | None, typer.Option(help="A Jinja file to write prompts by, instead of the model's own.")
    ] = None
    lora: Annotated[
        list[str] | None,
        typer.Option("--lora", metavar="NAME=PATH", help="A LoRA adapter's directory. Repeatable."),
    ] = None
    lora_column: Annotated[str | None, typer.Option(help="Take each row's adapter, by name, from here.")] = (
        None
    )
    system: Annotated[
        list[str] | None,
        typer.Option(
            "--system", "-s", metavar="NAME|@FILE|TEXT", help="System message. Repeatable. [synthia]"
        ),
    ] = None
    input_format: Annotated[
        str | None,
        typer.Option(
            help="openai-batch, sharegpt, alpaca or plain. [found]", autocompletion=_offer("InputFormat")
        ),
    ] = None
    prompt_template: Annotated[
        Path | None, typer.Option(help="A Jinja file that writes each prompt from the row's columns.")
    ] = None
    prompt_column: Annotated[
        str | None, typer.Option(help="[prompt, question, instruction, input or text]")
    ] = None
    messages_column: Annotated[
        str | None, typer.Option(help="Conversations in OpenAI's shape. [messages]")
    ] = None
    turns_column: Annotated[
        str | None, typer.Option(help="Lists of user messages, played turn by turn. [turns]")
    ] = None
    system_column: Annotated[str | None, typer.Option(help="Take each row's system message from here.")] = (
        None
    )
    id_column: Annotated[str | None, typer.Option(help="[a hash of the row's content]")] = None
    keep_columns: Annotated[str | None, typer.Option(help="Input columns for the output: a,b,c")] = None
    sampling_column: Annotated[
        str | None, typer.Option(help="Take what a row says of its own sampling from here.")
    ] = None
    tools_column: Annotated[
        str | None, typer.Option(help="Take a row's tool definitions, for the chat template, from here.")
    ] = None
    num_samples: Annotated[
        int | None, typer.Option("--num-samples", "-n", help="Per row and system message. [1]")
    ] = None
    flag: Annotated[
        str | None,
        typer.Option(
            metavar="NAMES", help="Mark answers, in a column: repetition,empty,refusal,language,duplicate"
        ),
    ] = None
    drop_flagged: Annotated[
        bool | None, typer.Option("--drop-flagged", help="Set marked samples aside, in failed/.")
    ] = None
    on_overflow: Annotated[
        str | None,
        typer.Option(
            help="A later turn without room: fail, truncate-oldest or stop. [fail]",
            autocompletion=_offer("OnOverflow"),
        ),
    ] = None
    temperature: Annotated[float | None, typer.Option(help="[0.75]")] = None
    top_p: Annotated[float | None, typer.Option(help="[1.0]")] = None
    top_k: Annotated[int | None, typer.Option(help="0 takes every token. [50]")] = None
    max_tokens: Annotated[
        str | None, typer.Option(metavar="COUNT", help="New tokens per answer, such as 512 or 4K. [1024]")
    ] = None
    stop: Annotated[list[str] | None, typer.Option(metavar="TEXT", help="Ends an answer. Repeatable.")] = None
    logprobs: Annotated[
        int | None, typer.Option(metavar="K", help="Keep each token's log-probability and the K likeliest.")
    ] = None
    json_schema: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Every answer is JSON of this schema.")
    ] = None
    regex: Annotated[str | None, typer.Option(metavar="TEXT", help="Every answer matches it whole.")] = None
    choice: Annotated[
        list[str] | None, typer.Option(metavar="A,B,...", help="Every answer is one of these. Repeatable.")
    ] = None
    grammar: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Every answer is of this grammar, GBNF or Lark.")
    ] = None
    reasoning_parser: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="vLLM's parser of the model's reasoning: deepseek_r1, ..."),
    ] = None
    seed: Annotated[int | None, typer.Option(help="[0]")] = None
    limit: Annotated[
        str | None, typer.Option(metavar="COUNT", help="Take the first rows only, such as 200 or 1.5M.")
    ] = None
    workers: Annotated[int | None, typer.Option(help="Engines. [one per GPU group, or per core]")] = None
    tensor_parallel_size: Annotated[
        int | None, typer.Option(help="GPUs that share an engine's layers. [1]")
    ] = None
    pipeline_parallel_size: Annotated[
        int | None, typer.Option(help="GPUs that take turns of an engine. [1]")
    ] = None
    ray_address: Annotated[str | None, typer.Option(help="A running Ray cluster. [a Ray of its own]")] = None
    pool: Annotated[
        str | None, typer.Option(help="ray or local. [ray]", autocompletion=_offer("PoolKind"))
    ] = None
    engine: Annotated[
        str | None,
        typer.Option(help="vllm, openai (a server) or scripted. [vllm]", autocompletion=_offer("EngineKind")),
    ] = None
    base_url: Annotated[
        str | None, typer.Option(metavar="URL", help="Of --engine openai: http://127.0.0.1:8000/v1")
    ] = None
    determinism: Annotated[
        str | None, typer.Option(help="strict or fast. [strict]", autocompletion=_offer("Determinism"))
    ] = None
    max_failures: Annotated[
        str | None,
        typer.Option(metavar="COUNT|SHARE", help="More failed samples, 500 or 1%, end with exit code 3."),
    ] = None
    deadline: Annotated[
        str | None, typer.Option(metavar="DURATION", help="Drain after this long, such as 7h30m.")
    ] = None
    stop_at: Annotated[
        str | None, typer.Option(metavar="HH:MM", help="Drain by this time of day, such as 07:00.")
    ] = None
    metrics_port: Annotated[int | None, typer.Option(help="Serve metrics for Prometheus here.")] = None
    notify: Annotated[
        list[str] | None,
        typer.Option(
            metavar="URL",
            help="Tell this Apprise URL of the end; '${NAME}' is an environment variable. Repeatable.",
        ),
    ] = None
    settings: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="Any key of a job file. Repeatable."),
    ] = None

    def read_layers(self) -> "list[Layer]":
        """Return the layers of flags, environment and job file, the strongest first."""
        from synthia_batch.job.dotted import merge_values, nest
        from synthia_batch.job.loading.job_file import read_job_file
        from synthia_batch.job.loading.merge import Layer, parse_assignment, read_environment

        paths, job_file = self._tell_input_from_job()
        said: dict[str, Any] = {}
        for field, key in _KEYS.items():
            value = paths if field == "input_or_job" else getattr(self, field)
            if value is not None and value != []:
                said = merge_values(said, nest(key, _spell(field, value)))
        for assignment in self.settings or []:
            said = merge_values(said, parse_assignment(assignment))
        layers = [Layer(origin="flag", values=said), read_environment(os.environ)]
        return [*layers, read_job_file(job_file)] if job_file else layers

    def _tell_input_from_job(self) -> tuple[str | list[str] | None, Path | None]:
        named = self.input_or_job or []
        jobs = [Path(name) for name in named if name.lower().endswith(_JOB_FILE_SUFFIXES)]
        jobs += [self.job] if self.job is not None else []
        if len(jobs) > 1:
            raise typer.BadParameter(f"two job files: {jobs[0]} and {jobs[1]}; name one")
        paths = [name for name in named if not name.lower().endswith(_JOB_FILE_SUFFIXES)]
        return (paths[0] if len(paths) == 1 else paths or None), next(iter(jobs), None)


_KEYS = {
    "input_or_job": "input.path",
    "output": "output",
    "state": "store.state",
    "model": "model.name",
    "revision": "model.revision",
    "preset": "preset",
    "chat_template": "chat_template",
    "lora": "lora.adapters",
    "lora_column": "lora.column",
    "system": "system",
    "input_format": "input.format",
    "prompt_template": "input.prompt_template",
    "prompt_column": "input.prompt_column",
    "messages_column": "input.messages_column",
    "turns_column": "input.turns_column",
    "system_column": "input.system_column",
    "id_column": "input.id_column",
    "keep_columns": "input.keep_columns",
    "sampling_column": "input.sampling_column",
    "tools_column": "input.tools_column",
    "reasoning_parser": "engine.reasoning_parser",
    "num_samples": "num_samples",
    "flag": "flags",
    "drop_flagged": "drop_flagged",
    "on_overflow": "on_overflow",
    "temperature": "sampling.temperature",
    "top_p": "sampling.top_p",
    "top_k": "sampling.top_k",
    "max_tokens": "sampling.max_tokens",
    "stop": "sampling.stop",
    "logprobs": "sampling.logprobs",
    "json_schema": "structured.json_schema",
    "regex": "structured.regex",
    "choice": "structured.choice",
    "grammar": "structured.grammar",
    "seed": "seed",
    "limit": "input.limit",
    "workers": "pool.workers",
    "tensor_parallel_size": "pool.tensor_parallel_size",
    "pipeline_parallel_size": "pool.pipeline_parallel_size",
    "ray_address": "pool.ray_address",
    "pool": "pool.kind",
    "engine": "engine.kind",
    "base_url": "engine.base_url",
    "determinism": "determinism",
    "max_failures": "max_failures",
    "deadline": "deadline",
    "stop_at": "stop_at",
    "metrics_port": "metrics_port",
    "notify": "notify",
}
"""The key of a job file that each flag says."""
_GROUPS = {
    "Job": ("job", "output", "state", "settings"),
    "Input": (
        "prompt_column", "messages_column", "turns_column", "system_column", "id_column", "keep_columns",
        "sampling_column", "tools_column", "input_format", "prompt_template", "limit",
    ),
    "Model": ("model", "revision", "preset", "chat_template", "lora", "lora_column"),
    "Prompts and samples": ("system", "num_samples", "flag", "drop_flagged", "on_overflow"),
    "Sampling": (
        "temperature", "top_p", "top_k", "max_tokens", "stop", "logprobs", "seed", "determinism",
    ),
    "Answers": ("json_schema", "regex", "choice", "grammar", "reasoning_parser"),
    "Engines": (
        "workers", "tensor_parallel_size", "pipeline_parallel_size", "ray_address", "pool", "engine",
        "base_url",
    ),
    "The night": ("deadline", "stop_at", "max_failures", "metrics_port", "notify"),
}  # fmt: skip
"""The flags as `--help` groups them; the command's own come last."""


def takes_job_flags(command: Callable[..., None]) -> Callable[..., None]:
    """Give `command`, a function of JobFlags and flags of its own, all the flags of a job.

    A short name such as -n that one of its own flags has means that one.
    """
    hints = get_type_hints(JobFlags, include_extras=True)
    for group, names in _GROUPS.items():
        for name in names:
            get_args(hints[name])[1].rich_help_panel = group
    shared = [
        inspect.Parameter(
            field.name, inspect.Parameter.KEYWORD_ONLY, default=field.default, annotation=hints[field.name]
        )
        for field in dataclasses.fields(JobFlags)
    ]
    own_hints = get_type_hints(command, include_extras=True)
    taken = {name for hint in own_hints.values() for name in _list_names(hint)}
    shared = [
        parameter.replace(annotation=_without_names(parameter.annotation, taken)) for parameter in shared
    ]
    own = [
        parameter.replace(kind=inspect.Parameter.KEYWORD_ONLY, annotation=own_hints[parameter.name])
        for parameter in list(inspect.signature(command).parameters.values())[1:]
    ]

    def with_job_flags(**values: Any) -> None:
        flags = JobFlags(**{parameter.name: values.pop(parameter.name) for parameter in shared})
        command(flags, **values)

    with_job_flags.__name__ = command.__name__
    with_job_flags.__doc__ = command.__doc__
    with_job_flags.__signature__ = inspect.Signature([*shared, *own])  # type: ignore[attr-defined]
    with_job_flags.__annotations__ = {parameter.name: parameter.annotation for parameter in (*shared, *own)}
    return with_job_flags


def _list_names(hint: Any) -> tuple[str, ...]:
    """Return the names that a flag is declared with; none where Typer makes one of the parameter's."""
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
    """Return the names that `a, b,c` lists."""
    return [name.strip() for name in text.split(",") if name.strip()]


def _spell(field: str, value: Any) -> Any:
    if field == "lora":
        return dict(_split_adapter(text) for text in value)
    if field in ("keep_columns", "flag"):
        return split_names(value)
    if field == "choice":
        return [name for text in value for name in split_names(text)]
    return str(value) if isinstance(value, Path) else value


def _split_adapter(text: str) -> tuple[str, str]:
    name, equals, path = text.partition("=")
    if not equals or not name or not path:
        raise typer.BadParameter(f"--lora {text}: write it as NAME=PATH, such as style=adapters/style")
    return name, path
