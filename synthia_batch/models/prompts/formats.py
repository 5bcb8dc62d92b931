"""How a conversation becomes the text that a model reads, and its text an answer."""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Protocol

import jinja2
from jinja2 import nodes
from jinja2.ext import Extension
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

from synthia_batch.core.types import Message
from synthia_batch.errors import SampleRefused, UsageError

THINK_START = "<think>"
THINK_END = "</think>"
TEMPLATE_DATE = datetime(2024, 7, 26, tzinfo=UTC)
"""What a chat template is told when it asks for the time: always this day, at midnight.

A prompt that held today's date would be another prompt tomorrow, and a run that is resumed would
not be one run. The day is the one that the template of Llama 3 writes where it cannot ask; it is
part of what OUTPUT_FORMAT stands for.
"""

Tools = Sequence[Mapping[str, Any]]
"""Definitions of tools, in OpenAI's shape."""
_ADDRESS = re.compile(r"0x[0-9A-Fa-f]{6,}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """What a model said, its reasoning (None where it shows none) apart from its response."""

    response: str
    reasoning: str | None


class PromptFormat(Protocol):
    """One way to write a conversation.

    `adds_special_tokens` says whether the tokenizer should add the model's own start token: a
    chat template writes it itself. `writes_special_tokens` says whether the format's own text has
    any: where it has none, none is read in a prompt. `stop` are strings that end every answer in
    this format. `thinks`: `read` finds reasoning in it.
    """

    name: str
    adds_special_tokens: bool
    writes_special_tokens: bool
    stop: tuple[str, ...]
    thinks: bool

    def write(self, messages: Sequence[Message], tools: Tools = ()) -> str:
        """Return the prompt for `messages`, up to where the model's answer starts, with `tools` to call.

        Raises:
            SampleRefused: The format cannot express this conversation.
        """

    def read(self, text: str) -> Answer:
        """Return the answer that the generated `text` is."""


_SYNTHIA_HEADS = {"system": "SYSTEM:", "user": "USER:", "assistant": "ASSISTANT:"}
_SYNTHIA_STOP = "USER:"


class SynthiaFormat:
    """The model cards' SYSTEM:/USER:/ASSISTANT: lines, answers cut at the next USER: and stripped.

    Source: the cards of Synthia-7B, Synthia-70B-v1.1 and Synthia-v3.0-11B, "Here is prompt format".
    """

    name = "synthia"
    adds_special_tokens = True
    writes_special_tokens = False
    stop: tuple[str, ...] = (_SYNTHIA_STOP,)
    thinks = False

    def write(self, messages: Sequence[Message], tools: Tools = ()) -> str:
        """Return one line for each turn and an open ASSISTANT: at the end."""
        turns = [f"{_SYNTHIA_HEADS[message.role]} {message.content}" for message in messages]
        return "\n".join([*turns, "ASSISTANT:"])

    def read(self, text: str) -> Answer:
        """Return `text` up to where the user would speak, stripped, as the cards' own loop does."""
        return Answer(response=text.split(_SYNTHIA_STOP)[0].strip(), reasoning=None)


class SynthiaCardFormat(SynthiaFormat):
    """What the cards' Python loop feeds to the model: a space before each newline, one at the end.

    Source: the same cards, "Below shows a code example": `f"{conversation} \\nUSER: {user_input}
    \\nASSISTANT: "`, to which the stripped answer is added. For the author's own results, with the
    system message that the loop begins with (`superintelligence` in the library).
    """

    name = "synthia-card"

    def write(self, messages: Sequence[Message], tools: Tools = ()) -> str:
        """Return the loop's `llm_prompt` for `messages`; without a system message it begins with USER:."""
        turns = [f"{_SYNTHIA_HEADS[message.role]} {message.content}" for message in messages]
        return " \n".join([*turns, "ASSISTANT: "])


class ChatFormat:
    """The model's own chat template."""

    name = "chat"
    adds_special_tokens = False
    writes_special_tokens = True
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
                "mend it, name another with --chat-template FILE, or use a --preset"
            ) from exc
        self._special_tokens = dict(special_tokens)
        self.thinks = THINK_END in template
        self._begins_thinking = self.thinks and self._opens_reasoning()

    def write(self, messages: Sequence[Message], tools: Tools = ()) -> str:
        """Return what the template makes of `messages` with the head of an answer added."""
        turns = [{"role": message.role, "content": message.content} for message in messages]
        try:
            return self._template.render(
                messages=turns,
                # Templates ask whether these are none, and transformers gives them that.
                tools=list(tools) or None,
                documents=None,
                add_generation_prompt=True,
                **self._special_tokens,
            )
        except Exception as exc:
            # A template is a program of somebody else's: it divides by zero, recurses without end and
            # calls what is no function, and each of these is this conversation's failure alone.
            raise SampleRefused("prompt_not_expressible", _describe_failure(exc)) from exc

    def read(self, text: str) -> Answer:
        """Return `text` as it is, or split behind its reasoning where the template knows of any.

        Reasoning that was cut off before its end is all there is: the response is empty.
        """
        if not self.thinks:
            return Answer(response=text, reasoning=None)
        reasoning, end, response = text.partition(THINK_END)
        if end or self._begins_thinking or text.lstrip().startswith(THINK_START):
            reasoning = reasoning.lstrip().removeprefix(THINK_START).strip()
            return Answer(response=response.strip(), reasoning=reasoning)
        return Answer(response=text, reasoning=None)

    def shows_tools(self) -> bool:
        """Whether a prompt tells the model of the tools that it has."""
        name = "look_up_the_weather"
        tool = {"type": "function", "function": {"name": name, "description": "?", "parameters": {}}}
        try:
            return name in self.write([Message("user", "?")], [tool])
        except SampleRefused:
            return False

    def _opens_reasoning(self) -> bool:
        """Whether prompts end inside a reasoning, so that the model goes on with it at once."""
        try:
            prompt = self.write([Message("user", "?")])
        except SampleRefused:
            return False
        return prompt.rfind(THINK_START) > prompt.rfind(THINK_END)


class PlainChatFormat:
    """`<role>` lines for engines without a model, and so without a template."""

    name = "plain"
    adds_special_tokens = False
    writes_special_tokens = False
    stop: tuple[str, ...] = ()
    thinks = False

    def write(self, messages: Sequence[Message], tools: Tools = ()) -> str:
        """Return the tools, where there are any, and each turn behind its role."""
        head = f"<tools>\n{_to_json(list(tools))}\n" if tools else ""
        turns = "".join(f"<{message.role}>\n{message.content}\n" for message in messages)
        return f"{head}{turns}<assistant>\n"

    def read(self, text: str) -> Answer:
        """Return `text` as it is."""
        return Answer(response=text, reasoning=None)


def _make_environment() -> ImmutableSandboxedEnvironment:
    """Return the Jinja dialect of chat templates, as transformers documents it, in a world without time."""
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols", _GenerationBlocks]
    )
    environment.globals["raise_exception"] = _raise_exception
    environment.globals["strftime_now"] = TEMPLATE_DATE.strftime
    environment.filters["tojson"] = _to_json
    return environment


class _GenerationBlocks(Extension):
    """`{% generation %}...{% endgeneration %}`: marks for training what the model wrote. Here only text."""

    tags = {"generation"}  # noqa: RUF012  (as Jinja declares it)

    def parse(self, parser: Parser) -> nodes.Node:
        """Return what stands within the block, its variables its own as in transformers."""
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return nodes.Scope(body).set_lineno(line)


def _describe_failure(exc: Exception) -> str:
    """Return why a template failed: for the same conversation the same text in every process."""
    if isinstance(exc, RecursionError):
        what = "it recurses without end"  # The interpreter's own words depend on where the stack ended.
    elif isinstance(exc, jinja2.TemplateError):
        what = str(exc)
    else:
        what = f"{type(exc).__name__}: {exc}"
    return f"the model's chat template: {_ADDRESS.sub('0x...', what)}"


def _raise_exception(message: str) -> None:
    raise jinja2.TemplateError(message)


def _to_json(value: Any, ensure_ascii: bool = False, indent: int | None = None, **options: Any) -> str:
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, **options)
