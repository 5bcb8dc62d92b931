"""Prompt formats: from a conversation to a prompt, and from generated text to an answer."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Protocol

import jinja2
from jinja2 import meta, nodes

from synthia_batch.core.errors import SampleRefused, UsageError
from synthia_batch.core.sandbox import refuse_addresses, refuse_chance
from synthia_batch.core.template_limits import render_limited
from synthia_batch.core.types import Message
from synthia_batch.job.schema import TEMPLATE_DATE
from synthia_batch.models.prompts.dialect import CLOCK, cut_after, describe_failure, make_environment, to_json

THINK_START = "<think>"
THINK_END = "</think>"
_GIVEN = frozenset({"messages", "tools", "add_generation_prompt"})
"""The variables of a template that are not its arguments."""

_PLACE = "Xq7ZuserZ7qX"
"""Stands for the message of the user that the model writes."""

Tools = Sequence[Mapping[str, Any]]
"""Tool definitions in OpenAI's format."""
Arguments = Mapping[str, Any]
"""Arguments of a chat template by name, JSON values."""
NO_ARGUMENTS: Arguments = MappingProxyType({})


@dataclass(frozen=True, slots=True, kw_only=True)
class ParsedAnswer:
    """A model's response and its reasoning, None if it shows none."""

    response: str
    reasoning: str | None


class PromptFormat(Protocol):
    """A way to write a conversation as a prompt.

    `adds_special_tokens`: the tokenizer must add the model's start token, which chat templates write
    themselves. `writes_special_tokens`: the format's own text contains special tokens; otherwise none
    is recognized in a prompt. `stop` are strings that end every answer. `thinks`: `read` finds reasoning.
    """

    name: str
    adds_special_tokens: bool
    writes_special_tokens: bool
    stop: tuple[str, ...]
    thinks: bool

    def write(self, messages: Sequence[Message], tools: Tools = (), kwargs: Arguments = NO_ARGUMENTS) -> str:
        """Return the prompt for `messages` and `tools`, up to where the answer starts.

        `kwargs` are the row's arguments of the chat template.

        Raises:
            SampleRefused: The format cannot express this conversation, or has no use for an argument.
        """

    def read(self, text: str, kwargs: Arguments = NO_ARGUMENTS) -> ParsedAnswer:
        """Return the answer in the generated `text` of a prompt with `kwargs`."""


_SYNTHIA_HEADS = {"system": "SYSTEM:", "user": "USER:", "assistant": "ASSISTANT:"}
_SYNTHIA_STOP = "USER:"


def continues(messages: Sequence[Message]) -> bool:
    """Whether `messages` end with an answer, which the model continues."""
    return messages[-1].role == "assistant"


def has_calls(message: Message) -> bool:
    return message.extra is not None and "tool_calls" in message.extra


def _is_open(messages: Sequence[Message]) -> bool:
    """Whether the model writes on at the end of `messages`, and not a new answer."""
    return continues(messages) or messages[-1].is_open


def _write_lines(messages: Sequence[Message], tools: Tools) -> list[str]:
    """Return one line per message. Raises SampleRefused for one that the cards' format has no line for."""
    other = next((one for one in messages if one.role not in _SYNTHIA_HEADS or has_calls(one)), None)
    if tools or other is not None:
        what = "tools"
        if other is not None:
            what = "tool calls" if has_calls(other) else f"the role {other.role}"
        raise SampleRefused("prompt_not_expressible", f"the format synthia has no place for {what}")
    return [f"{_SYNTHIA_HEADS[message.role]} {message.content}" for message in messages]


class SynthiaFormat:
    """The model cards' SYSTEM:/USER:/ASSISTANT: lines. Answers end at the next USER: and are stripped.

    Source: the cards of Synthia-7B, Synthia-70B-v1.1 and Synthia-v3.0-11B, "Here is prompt format".
    """

    name = "synthia"
    adds_special_tokens = True
    writes_special_tokens = False
    stop: tuple[str, ...] = (_SYNTHIA_STOP,)
    thinks = False

    def write(self, messages: Sequence[Message], tools: Tools = (), kwargs: Arguments = NO_ARGUMENTS) -> str:
        """Return one line per turn and an open ASSISTANT: at the end."""
        _refuse_arguments(kwargs)
        lines = _write_lines(messages, tools)
        if messages[-1].is_open:
            return "\n".join(lines).rstrip(" ")
        return "\n".join(lines if continues(messages) else [*lines, "ASSISTANT:"])

    def read(self, text: str, kwargs: Arguments = NO_ARGUMENTS) -> ParsedAnswer:
        """Return `text` up to the next USER:, stripped, as in the cards' own loop."""
        return ParsedAnswer(response=text.split(_SYNTHIA_STOP)[0].strip(), reasoning=None)


class SynthiaCardFormat(SynthiaFormat):
    """The exact prompts of the cards' Python loop: a space before each newline and at the end.

    Source: the same cards, "Below shows a code example": `f"{conversation} \\nUSER: {user_input}
    \\nASSISTANT: "`, followed by the stripped answer. Reproduces the author's results with the system
    message of the loop (`superintelligence` in the library).
    """

    name = "synthia-card"

    def write(self, messages: Sequence[Message], tools: Tools = (), kwargs: Arguments = NO_ARGUMENTS) -> str:
        """Return the loop's `llm_prompt`; without a system message it starts with USER:."""
        _refuse_arguments(kwargs)
        lines = _write_lines(messages, tools)
        return " \n".join(lines if _is_open(messages) else [*lines, "ASSISTANT: "])


class ChatFormat:
    """The model's own chat template.

    `arguments` are the names that it reads beside the conversation. `asks_for_day`: it may write the day.
    `begins_thinking`: what is generated begins inside reasoning.
    """

    name = "chat"
    adds_special_tokens = False
    writes_special_tokens = True
    stop: tuple[str, ...] = ()

    def __init__(
        self,
        template: str,
        special_tokens: Mapping[str, str],
        *,
        kwargs: Arguments = NO_ARGUMENTS,
        day: str = TEMPLATE_DATE,
    ) -> None:
        """Compile the Jinja `template`, which may use the names in `special_tokens` and `kwargs`.

        `day` (YYYY-MM-DD), at midnight, is what it gets for the present time.

        Raises:
            UsageError: It is not a valid template, or draws lots.
        """
        try:
            environment = make_environment(day)
            tree = environment.parse(template)
            refuse_chance(tree)
            self._template = environment.from_string(template)
        except jinja2.TemplateSyntaxError as exc:
            raise UsageError(
                f"the model's chat template, line {exc.lineno}: {exc.message}; "
                "fix it, pass another one with --chat-template FILE, or use a --preset"
            ) from exc
        self._source = template
        self._special_tokens = dict(special_tokens)
        self._shows_tools: bool | None = None
        self._kwargs = dict(kwargs)
        self.asks_for_day = any(name.name == CLOCK for name in tree.find_all(nodes.Name))
        self.arguments = tuple(sorted(meta.find_undeclared_variables(tree) - _GIVEN - special_tokens.keys()))
        self.thinks = THINK_END in template
        self.begins_thinking = self.thinks and self._opens_reasoning()

    def write(self, messages: Sequence[Message], tools: Tools = (), kwargs: Arguments = NO_ARGUMENTS) -> str:
        """Return `messages` rendered by the template, with the start of an answer or up to the end of one."""
        if messages[-1].is_open:
            asked = self._render([*messages[:-1], Message("user", _PLACE)], tools, kwargs)
            # Tokens of words begin with the space.
            prompt = asked[: max(0, asked.rfind(_PLACE))].rstrip(" ")
        else:
            prompt = self._render(messages, tools, kwargs)
        if continues(messages):
            prompt = cut_after(prompt, messages[-1].content)
        calls = [call for one in messages if one.extra for call in one.extra.get("tool_calls", ())]
        if any(call["function"]["name"] not in prompt for call in calls):
            raise SampleRefused("prompt_not_expressible", "the model's chat template leaves out tool calls")
        if tools and not self.shows_tools():
            raise SampleRefused("prompt_not_expressible", "the model's chat template has no place for tools")
        return prompt

    def _render(self, messages: Sequence[Message], tools: Tools, kwargs: Arguments) -> str:
        unread = next((name for name in kwargs if name not in self.arguments), None)
        if unread is not None:
            raise SampleRefused("prompt_not_expressible", f"the chat template reads no argument {unread!r}")
        merged = {**self._kwargs, **kwargs}
        turns = [message.to_dict() for message in messages]
        try:
            text = render_limited(
                self._template,
                messages=turns,
                # Templates check whether these are None, as transformers passes them.
                tools=list(tools) or None,
                add_generation_prompt=not continues(messages),
                **{"documents": None, **self._special_tokens, **merged},
            )
            return refuse_addresses(text, turns, list(tools), self._source, self._special_tokens, merged)
        except Exception as exc:
            # A template is foreign code: whatever it raises, from division by zero to endless recursion,
            # only fails this conversation.
            raise SampleRefused("prompt_not_expressible", describe_failure(exc)) from exc

    def read(self, text: str, kwargs: Arguments = NO_ARGUMENTS) -> ParsedAnswer:
        """Return `text`, split after its reasoning if the template supports reasoning.

        If reasoning was cut off before its end, the response is empty.
        """
        if not self.thinks:
            return ParsedAnswer(response=text, reasoning=None)
        reasoning, end, response = text.partition(THINK_END)
        begins = self._opens_reasoning(kwargs) if kwargs else self.begins_thinking
        if end or begins or text.lstrip().startswith(THINK_START):
            reasoning = reasoning.lstrip().removeprefix(THINK_START).strip()
            return ParsedAnswer(response=response.strip(), reasoning=reasoning)
        return ParsedAnswer(response=text, reasoning=None)

    def shows_tools(self) -> bool:
        """Whether the template includes tools in the prompt."""
        if self._shows_tools is None:
            name = "look_up_the_weather"
            tool = {"type": "function", "function": {"name": name, "description": "?", "parameters": {}}}
            try:
                self._shows_tools = name in self._render([Message("user", "?")], [tool], NO_ARGUMENTS)
            except SampleRefused:
                self._shows_tools = False
        return self._shows_tools

    def _opens_reasoning(self, kwargs: Arguments = NO_ARGUMENTS) -> bool:
        """Whether prompts end inside an open reasoning block, which the model continues."""
        try:
            prompt = self.write([Message("user", "?")], kwargs=kwargs)
        except SampleRefused:
            return False
        return prompt.rfind(THINK_START) > prompt.rfind(THINK_END)


class PlainChatFormat:
    """`<role>` lines for engines that have no model and therefore no template."""

    name = "plain"
    adds_special_tokens = False
    writes_special_tokens = False
    stop: tuple[str, ...] = ()
    thinks = False

    def __init__(self, kwargs: Arguments = NO_ARGUMENTS) -> None:
        """Write `kwargs`, the job's, before every conversation."""
        self._kwargs = dict(kwargs)

    def write(self, messages: Sequence[Message], tools: Tools = (), kwargs: Arguments = NO_ARGUMENTS) -> str:
        """Return the arguments and tools, if any, and each message after its role."""
        head = f"<arguments>\n{to_json({**self._kwargs, **kwargs})}\n" if self._kwargs or kwargs else ""
        head += f"<tools>\n{to_json(list(tools))}\n" if tools else ""
        turns = "".join(
            f"<{message.role}>\n{message.content}\n{to_json(message.extra) if message.extra else ''}"
            for message in messages
        )
        return head + (turns.removesuffix("\n") if _is_open(messages) else f"{turns}<assistant>\n")

    def read(self, text: str, kwargs: Arguments = NO_ARGUMENTS) -> ParsedAnswer:
        """Return `text` unchanged."""
        return ParsedAnswer(response=text, reasoning=None)


def _refuse_arguments(kwargs: Arguments) -> None:
    if kwargs:
        raise SampleRefused(
            "prompt_not_expressible", f"no chat template writes the prompt, to read {next(iter(kwargs))!r}"
        )
