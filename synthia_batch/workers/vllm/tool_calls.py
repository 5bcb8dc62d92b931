"""Finds tool calls in vLLM's answers, with vLLM's own parser of the model's notation."""

import dataclasses
import json
from collections.abc import Mapping
from typing import Any

from vllm.entrypoints.openai.chat_completion.protocol import ChatCompletionRequest
from vllm.tool_parsers import ToolParser, ToolParserManager

from synthia_batch.core.errors import UsageError
from synthia_batch.core.types import Failed, Finished, Message, Request
from synthia_batch.workers.vllm.outputs import load_tokenizer

NOT_PARSED = "tool_calls_not_parsed"
"""Failure code of an answer in which the parser failed."""


class ToolCallReader:
    """Reads the calls of an answer, with a new parser for each: some keep state.

    Without `reads_reasoning`, markers of reasoning in an answer are text to the parser.
    """

    def __init__(self, kind: type[ToolParser], tokenizer: Any, *, reads_reasoning: bool = False) -> None:
        self._kind = kind
        self._tokenizer = tokenizer
        self._reads_reasoning = reads_reasoning
        try:
            self._create_parser(None)
        except RuntimeError as exc:  # Raised if the tokenizer lacks the parser's markers.
            raise UsageError(
                f"--tool-call-parser: {exc}\n"
                "it is for a different model; use this model's parser, or leave it out"
            ) from exc

    def skips_special_tokens(self, request: Request, *, skips: bool) -> bool:
        """Return whether the answer is without special tokens, given whether the job `skips` them.

        The marks of calls are special tokens in some models.
        """
        chat = _describe(request, skips=skips)
        return bool(self._create_parser(chat.tools).adjust_request(chat).skip_special_tokens)

    def read(self, finished: Finished, request: Request) -> Finished | Failed:
        """Return `finished` with the message that its calls make, unchanged if it calls no tool."""
        chat = _describe(request)
        try:
            found = self._create_parser(chat.tools).extract_tool_calls(finished.response, chat)
        except Exception as exc:  # A parser is a plugin: its error fails only this answer.
            return Failed(ordinal=finished.ordinal, code=NOT_PARSED, message=f"{type(exc).__name__}: {exc}")
        if not found.tools_called:
            return finished
        calls = [
            {
                "type": "function",
                "function": {"name": call.function.name, "arguments": _decode(call.function.arguments)},
            }
            for call in found.tool_calls
        ]
        message = Message("assistant", (found.content or "").strip(), {"tool_calls": calls})
        return dataclasses.replace(finished, called=message)

    def _create_parser(self, tools: Any) -> ToolParser:
        parser = self._kind(self._tokenizer, tools)
        if hasattr(parser, "skip_reasoning_parsing"):
            parser.skip_reasoning_parsing = not self._reads_reasoning
        return parser


def open_call_reader(settings: Mapping[str, Any], arguments: Mapping[str, Any]) -> ToolCallReader | None:
    """Return the reader for these settings and arguments of `vllm.LLM`; None if no parser is named."""
    name = settings.get("tool_call_parser")
    if not name:
        return None
    if settings.get("tool_parser_plugin"):
        ToolParserManager.import_tool_parser(settings["tool_parser_plugin"])
    return ToolCallReader(
        ToolParserManager.get_tool_parser(name),
        load_tokenizer(arguments),
        reads_reasoning=bool(arguments.get("reasoning_parser")),
    )


def _describe(request: Request, *, skips: bool = True) -> ChatCompletionRequest:
    tools: list[Any] = [dict(tool) for tool in request.tools]  # Pydantic makes models of them.
    return ChatCompletionRequest(
        messages=[{"role": "user", "content": "?"}],
        seed=None,
        tools=tools or None,
        tool_choice="auto",
        skip_special_tokens=skips,
        chat_template_kwargs=dict(request.template_kwargs) if request.template_kwargs else None,
    )


def _decode(arguments: str) -> Any:
    """Return the arguments as an object, as chat templates take them, or as they are if they are none."""
    try:
        value = json.loads(arguments)
    except ValueError:
        return arguments
    return value if isinstance(value, dict) else arguments
