"""vLLM's reasoning parsers: what of an answer was thought, and what was said."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from vllm.entrypoints.openai.chat_completion.protocol import ChatCompletionRequest
from vllm.reasoning import ReasoningParser, ReasoningParserManager
from vllm.tokenizers import get_tokenizer

from synthia_batch.core.types import Failed, Finished
from synthia_batch.errors import UsageError

NOT_PARSED = "reasoning_not_parsed"
"""The code of an answer that the parser could not read."""


class Reasoning:
    """Splits answers with a parser that is made anew for each: some keep what they have seen."""

    def __init__(self, kind: type[ReasoningParser], tokenizer: Any) -> None:
        self._kind = kind
        self._tokenizer = tokenizer
        self._open()

    def split(self, made: Finished) -> Finished | Failed:
        """Return `made` with its reasoning apart from its response, both stripped; as it is without any."""
        request = ChatCompletionRequest(messages=[{"role": "user", "content": "?"}], seed=None)
        try:
            reasoning, response = self._open().extract_reasoning(made.response, request)
        except Exception as exc:  # A parser is a plugin: what one cannot read is this answer's failure alone.
            return Failed(ordinal=made.ordinal, code=NOT_PARSED, message=f"{type(exc).__name__}: {exc}")
        if reasoning is None:
            return dataclasses.replace(made, response=response or "")
        return dataclasses.replace(made, reasoning=reasoning.strip(), response=(response or "").strip())

    def _open(self) -> ReasoningParser:
        try:
            return self._kind(self._tokenizer)
        except RuntimeError as exc:  # As they say that the tokenizer lacks their marks.
            raise UsageError(
                f"--reasoning-parser: {exc}\nit is for another model; name this one's, or leave it out"
            ) from exc


def open_reasoning(arguments: Mapping[str, Any]) -> Reasoning | None:
    """Return what tells reasoning from answers, by the arguments of `vllm.LLM`; None where nothing is to.

    Raises:
        UsageError: The parser does not fit the model's tokenizer.
    """
    name = arguments.get("reasoning_parser")
    if not name:
        return None
    if arguments.get("reasoning_parser_plugin"):
        ReasoningParserManager.import_reasoning_parser(arguments["reasoning_parser_plugin"])
    tokenizer: Any = get_tokenizer(
        arguments.get("tokenizer") or arguments["model"],
        trust_remote_code=arguments["trust_remote_code"],
        revision=arguments["revision"],
    )
    return Reasoning(ReasoningParserManager.get_reasoning_parser(name), tokenizer)
