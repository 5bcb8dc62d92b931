"""What is asked, and what is required of every answer: its structure, tools, and log-probabilities."""

from typing import Any

from synthia_batch.core.errors import UsageError
from synthia_batch.core.types import Structure
from synthia_batch.job.accept_function import AcceptFunction
from synthia_batch.job.loading.merge import Merged
from synthia_batch.job.resolved import Device, EngineSpec
from synthia_batch.job.schema import TEMPLATE_DATE, Determinism, Job
from synthia_batch.job.select import identify_patterns
from synthia_batch.job.structured import make_structure
from synthia_batch.job.structured_check import check_structure, read_schema, read_text
from synthia_batch.models.prompts.formats import ChatFormat, PlainChatFormat, PromptFormat
from synthia_batch.scheduler.acceptance import open_acceptance

MAX_LOGPROBS = 20
"""vLLM's default of engine.max_logprobs (config/model.py of 0.32.0)."""


def read_structure(merged: Merged) -> Structure | None:
    """Return the structure of every answer, with its file read, or None.

    Raises:
        UsageError: The file cannot be read, or is not a valid structure.
    """
    section = merged.job.structured
    if section.kind is None:
        return None
    with merged.locate_errors(f"structured.{section.kind}"):
        value = getattr(section, section.kind)
        if section.kind == "json_schema":
            value = read_schema(value)
        elif section.kind == "grammar":
            value = read_text(value)
        structure = make_structure(section.kind, value)
        try:
            check_structure(structure)
        except ValueError as exc:
            raise UsageError(f"structured.{exc}") from exc
    return structure


def check_continued(engine: EngineSpec) -> None:
    """Return if answers that rows begin can be continued with this engine.

    Raises:
        UsageError: They would be read as a whole: their reasoning, tool calls or structure.
    """
    whole = (
        ("engine.reasoning_parser", engine.parses_reasoning),
        ("engine.tool_call_parser", engine.parses_tool_calls),
        ("structured", engine.structure),
    )
    for what, is_set in whole:
        if is_set:
            raise UsageError(
                f"--final-assistant continue: {what} reads whole answers, and these begin in the input; "
                "leave one of the two out"
            )


def check_prompt_format(job: Job, prompt_format: PromptFormat) -> None:
    """Return if prompts of this format can have everything that the job puts into them.

    Raises:
        UsageError: They cannot have tools, or the template does not read an argument, or asks for no day, or
            what follows it is reasoning where the user's message is generated.
    """
    if job.input.tools_column is not None:
        _check_tools(prompt_format)
    has_day = job.template_date != TEMPLATE_DATE
    if isinstance(prompt_format, PlainChatFormat):  # A rehearsal takes what the job will be run with.
        return
    if not isinstance(prompt_format, ChatFormat):
        for key, is_set in (("chat_template_kwargs", job.chat_template_kwargs), ("template_date", has_day)):
            if is_set:
                raise UsageError(
                    f"{key}: the prompts of this job are written without a chat template; leave it out"
                )
        return
    if job.input.generate_role == "user" and prompt_format.begins_thinking:
        raise UsageError(
            "input.generate_role user: the chat template begins with reasoning, which users have not; name "
            "another model, or a --chat-template FILE"
        )
    for name in job.chat_template_kwargs:
        if name not in prompt_format.arguments:
            known = ", ".join(prompt_format.arguments) or "none"
            raise UsageError(
                f"chat_template_kwargs.{name}: the chat template reads no such argument, so it would have no "
                f"effect; it reads: {known}"
            )
    if has_day and not prompt_format.asks_for_day:
        raise UsageError("template_date: the chat template asks for no day; leave it out")


def _check_tools(prompt_format: PromptFormat) -> None:
    if isinstance(prompt_format, PlainChatFormat):  # Of engines without a model.
        return
    if isinstance(prompt_format, ChatFormat) and prompt_format.shows_tools():
        return
    what = (
        "the chat template" if isinstance(prompt_format, ChatFormat) else f"the format {prompt_format.name}"
    )
    raise UsageError(
        f"--tools-column: {what} has no place for tools; name another template with "
        "--chat-template FILE, or another model"
    )


def check_logprobs(job: Job, device: Device) -> None:
    """Return if the job can have the log-probabilities that it requests. Raises UsageError if it cannot."""
    count = job.sampling.logprobs
    if count is None:
        return
    if job.engine.kind != "vllm":
        return
    most = job.engine.settings.get("max_logprobs", MAX_LOGPROBS)
    if most != -1 and count > most:
        raise UsageError(
            f"--logprobs {count}: vLLM gives {most} at most; raise that with --set engine.max_logprobs=COUNT"
        )
    _check_batch_invariance("--logprobs", job.determinism, device)


def check_requested_logprobs(engine: EngineSpec) -> None:
    """Return if this engine can return the log-probabilities that requests of a batch file want.

    Raises:
        UsageError: It cannot.
    """
    if engine.is_elsewhere:
        raise UsageError(
            "the requests set logprobs, which are not read from a server; remove them, or use --engine vllm"
        )
    if engine.kind == "vllm":
        _check_batch_invariance("the requests set logprobs", engine.determinism, engine.device)


def _check_batch_invariance(what: str, determinism: Determinism, device: Device) -> None:
    if determinism == "strict" and device == "cuda":
        raise UsageError(
            f"{what}: on GPUs their last bits were seen to depend on the batch where tokens do not "
            "(vllm#51187), and strict determinism promises every byte; use --determinism fast"
        )


def identify_acceptance(merged: Merged, *, plays_turns: bool) -> dict[str, Any]:
    """Return the identity of `accept`, empty without it. Raises UsageError if it cannot be used."""
    job = merged.job
    if job.accept is None:
        if merged.is_explicit("max_candidates"):
            raise UsageError("max_candidates: has no effect without accept; set both")
        return {}
    with merged.locate_errors("accept"):
        if plays_turns:
            raise UsageError("accept: is for single answers; a conversation of several turns has none")
        open_acceptance(job)
    if isinstance(job.accept, AcceptFunction):
        return {"function": str(job.accept), "max_candidates": job.max_candidates}
    patterns = identify_patterns((job.accept,))
    return {"expression": job.accept, "max_candidates": job.max_candidates, **patterns}


def read_template(merged: Merged) -> str | None:
    """Return the text of the job's template of prompts or messages, or None if it has none."""
    declared = merged.job.input
    key = "messages_template" if declared.messages_template is not None else "prompt_template"
    path = getattr(declared, key)
    if path is None:
        return None
    with merged.locate_errors(f"input.{key}"):
        if key == "messages_template" and declared.prompt_template is not None:
            raise UsageError("--messages-template: there is a prompt template too; name one")
        try:
            return str(path.read_text(encoding="utf-8"))
        except (OSError, UnicodeDecodeError) as exc:
            why = exc.strerror if isinstance(exc, OSError) else "it is not UTF-8"
            flag = f"--{key.replace('_', '-')}"
            raise UsageError(f"{flag} {path}: cannot be read: {why}; name a text file") from exc
