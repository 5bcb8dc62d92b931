"""Converts vLLM's answers: their text, reasoning and log-probabilities."""

import dataclasses
import sys
from array import array
from collections.abc import Iterator, Mapping
from typing import Any

from vllm.entrypoints.openai.chat_completion.protocol import ChatCompletionRequest
from vllm.logprobs import Logprob
from vllm.outputs import CompletionOutput
from vllm.reasoning import ReasoningParser, ReasoningParserManager
from vllm.tokenizers import get_tokenizer

from synthia_batch.core.errors import UsageError
from synthia_batch.core.types import Failed, Finished, Logprobs, Request

NOT_PARSED = "reasoning_not_parsed"
"""Failure code of an answer that the reasoning parser could not read."""


def convert_answer(request: Request, answer: CompletionOutput, logprobs: int | None) -> Finished:
    """Return `answer` to `request`, its reasoning still in the response.

    `logprobs` is the number of likeliest tokens to keep at each position, None for no log-probabilities.
    """
    return Finished(
        ordinal=request.ordinal,
        response=answer.text,
        reasoning=None,
        finish_reason=answer.finish_reason or "unknown",
        prompt_tokens=len(request.token_ids),
        completion_tokens=len(answer.token_ids),
        logprob=answer.cumulative_logprob if request.wants_logprob else None,
        logprobs=None if logprobs is None else _convert_logprobs(answer, logprobs),
        turn=request.turn,
    )


def _convert_logprobs(answer: CompletionOutput, count: int) -> Logprobs:
    positions = [position for position in answer.logprobs or () if position is not None]
    entries = [
        entry
        for token, position in zip(answer.token_ids, positions, strict=True)
        for entry in _rank_tokens(token, position, count)
    ]
    return Logprobs(
        width=len(entries) // max(1, len(answer.token_ids)),
        ids=array("i", [token for token, _ in entries]),
        # The same token texts occur many times.
        tokens=tuple(sys.intern(entry.decoded_token or "") for _, entry in entries),
        values=array("f", [entry.logprob for _, entry in entries]),
    )


def _rank_tokens(token: int, position: Mapping[int, Logprob], count: int) -> Iterator[tuple[int, Logprob]]:
    """Yield the chosen token's entry, then the `count` likeliest ones by rank, which starts at 1."""
    yield token, position[token]
    ranked = {entry.rank: (other, entry) for other, entry in position.items()}
    yield from (ranked[rank] for rank in range(1, count + 1))


class ReasoningSplitter:
    """Separates reasoning from responses, with a new parser for each answer: some keep state."""

    def __init__(self, kind: type[ReasoningParser], tokenizer: Any) -> None:
        self._kind = kind
        self._tokenizer = tokenizer
        self._create_parser()

    def split(self, finished: Finished, kwargs: Mapping[str, Any] | None = None) -> Finished | Failed:
        """Return `finished` with its reasoning separated, both parts stripped; unchanged without any.

        `kwargs` are the arguments of the chat template, which may have turned reasoning off.
        """
        request = ChatCompletionRequest(messages=[{"role": "user", "content": "?"}], seed=None)
        try:
            reasoning, response = self._create_parser(kwargs).extract_reasoning(finished.response, request)
        except Exception as exc:  # A parser is a plugin: its error fails only this answer.
            return Failed(ordinal=finished.ordinal, code=NOT_PARSED, message=f"{type(exc).__name__}: {exc}")
        if reasoning is None:
            return dataclasses.replace(finished, response=response or "")
        return dataclasses.replace(finished, reasoning=reasoning.strip(), response=(response or "").strip())

    def _create_parser(self, kwargs: Mapping[str, Any] | None = None) -> ReasoningParser:
        options = {"chat_template_kwargs": dict(kwargs)} if kwargs else {}
        try:
            return self._kind(self._tokenizer, **options)
        except RuntimeError as exc:  # Raised if the tokenizer lacks the parser's markers.
            raise UsageError(
                f"--reasoning-parser: {exc}\n"
                "it is for a different model; use this model's parser, or leave it out"
            ) from exc


def open_splitter(arguments: Mapping[str, Any]) -> ReasoningSplitter | None:
    """Return the splitter for the arguments of `vllm.LLM`; None if they name no reasoning parser."""
    name = arguments.get("reasoning_parser")
    if not name:
        return None
    if arguments.get("reasoning_parser_plugin"):
        ReasoningParserManager.import_reasoning_parser(arguments["reasoning_parser_plugin"])
    return ReasoningSplitter(ReasoningParserManager.get_reasoning_parser(name), load_tokenizer(arguments))


def load_tokenizer(arguments: Mapping[str, Any]) -> Any:
    """Return the tokenizer that vLLM loads for these arguments of `vllm.LLM`, as its parsers take it."""
    return get_tokenizer(
        arguments.get("tokenizer") or arguments["model"],
        trust_remote_code=arguments["trust_remote_code"],
        revision=arguments["revision"],
    )
