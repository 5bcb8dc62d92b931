"""How a conversation becomes the text that a model reads, and its text an answer."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import jinja2
from jinja2.sandbox import ImmutableSandboxedEnvironment

from synthia_batch.errors import SampleRefused, UsageError
from synthia_batch.rows import Message

THINK_END = "</think>"


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """What a model said, its reasoning (None where it shows none) apart from its response."""

    response: str
    reasoning: str | None


class PromptFormat(Protocol):
    """One way to write a conversation.

    `adds_special_tokens` says whether the tokenizer should add the model's own start token: a
    chat template writes it itself. `stop` are strings that end every answer in this format.
    """

    name: str
    adds_special_tokens: bool
    stop: tuple[str, ...]

    def write(self, messages: Sequence[Message]) -> str:
        """Return the prompt for `messages`, up to where the model's answer starts.

        Raises:
            SampleRefused: The format cannot express this conversation.
        """

    def read(self, text: str) -> Answer:
        """Return the answer that the generated `text` is."""


_SYNTHIA_HEADS = {"system": "SYSTEM:", "user": "USER:", "assistant": "ASSISTANT:"}


class SynthiaFormat:
    """The model cards' SYSTEM:/USER:/ASSISTANT: lines, answers cut at the next USER: and stripped.

    Source: the cards of Synthia-7B, Synthia-70B-v1.1 and Synthia-v3.0-11B, "Here is prompt format".
    """

    name = "synthia"
    adds_special_tokens = True
    stop: tuple[str, ...] = ("USER:",)

    def write(self, messages: Sequence[Message]) -> str:
        """Return one line for each turn and an open ASSISTANT: at the end."""
        turns = [f"{_SYNTHIA_HEADS[message.role]} {message.content}" for message in messages]
        return "\n".join([*turns, "ASSISTANT:"])

    def read(self, text: str) -> Answer:
        """Return `text` stripped, as the cards' own loop does."""
        return Answer(response=text.strip(), reasoning=None)


class ChatFormat:
    """The model's own chat template."""

    name = "chat"
    adds_special_tokens = False
    stop: tuple[str, ...] = ()

    def __init__(self, template: str, special_tokens: Mapping[str, str]) -> None:
        """Compile `template`, a Jinja text that may use the names in `special_tokens`.

        Raises:
            UsageError: It is not a valid template.
        """
        try:
            self._template = _make_environment().from_string(template)
        except jinja2.TemplateSyntaxError as exc:
            raise UsageError(
                f"the model's chat template, line {exc.lineno}: {exc.message}; "
                "mend it, or use --set prompt_format=synthia"
            ) from exc
        self._special_tokens = dict(special_tokens)
        self._thinks = THINK_END in template

    def write(self, messages: Sequence[Message]) -> str:
        """Return what the template makes of `messages` with the head of an answer added."""
        turns = [{"role": message.role, "content": message.content} for message in messages]
        try:
            return self._template.render(messages=turns, add_generation_prompt=True, **self._special_tokens)
        except (jinja2.TemplateError, TypeError, ValueError, LookupError) as exc:
            raise SampleRefused("prompt_not_expressible", f"the model's chat template: {exc}") from exc

    def read(self, text: str) -> Answer:
        """Return `text` as it is, or split behind its reasoning where the template knows of any."""
        if self._thinks and THINK_END in text:
            reasoning, _, response = text.partition(THINK_END)
            return Answer(response=response.strip(), reasoning=reasoning.removeprefix("<think>").strip())
        return Answer(response=text, reasoning=None)


class PlainChatFormat:
    """`<role>` lines for engines without a model, and so without a template."""

    name = "plain"
    adds_special_tokens = False
    stop: tuple[str, ...] = ()

    def write(self, messages: Sequence[Message]) -> str:
        """Return each turn behind its role."""
        return "".join(f"<{message.role}>\n{message.content}\n" for message in messages) + "<assistant>\n"

    def read(self, text: str) -> Answer:
        """Return `text` as it is."""
        return Answer(response=text, reasoning=None)


def _make_environment() -> ImmutableSandboxedEnvironment:
    """Return the Jinja dialect of chat templates, as transformers documents it.

    One name is missing on purpose: `strftime_now`. A prompt that holds today's date would be
    another prompt tomorrow; templates that know the name fall back on a fixed date without it.
    """
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"]
    )
    environment.globals["raise_exception"] = _raise_exception
    environment.filters["tojson"] = _to_json
    return environment


def _raise_exception(message: str) -> None:
    raise jinja2.TemplateError(message)


def _to_json(value: Any, ensure_ascii: bool = False, indent: int | None = None, **options: Any) -> str:
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, **options)
