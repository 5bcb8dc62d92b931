"""The proof, at every start, that an engine's answers do not depend on what else is in its batch.

A few prompts of different lengths are asked alone, one after the other, and then all together among
fillers that end one after the other, so that every step of theirs is of another batch. What it costs is
in benchmarks/results/2026-11-21-determinism.md.

Texts must agree, and where engines tell probabilities, these to the last bit: they differ long before a
token of the few here does. An engine that gives one prompt two answers, or one answer two probabilities,
is refused. On a CPU where only probabilities differed, 395 of 512 longer texts came out otherwise
(benchmarks/results/2026-11-22-amx.md).

The canary cannot see what shows only in batches larger than its own: for that there is `verify --rerun`,
and for the engines that are tested the matrix of benchmarks/determinism.py.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from blake3 import blake3

from synthia_batch.core.types import Failed, Finished, Outcome, Request
from synthia_batch.errors import DeterminismBroken, UsageError
from synthia_batch.workers.engine import Engine, EngineFacts


@dataclass(frozen=True, slots=True, kw_only=True)
class Canaries:
    """What is asked: `prompts` alone and among, `fillers` only to keep them company. Ordinals below 0."""

    prompts: tuple[Request, ...]
    fillers: tuple[Request, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class CanaryAnswer:
    """What an engine answered: digests of the texts, and of their probabilities to the last bit."""

    texts: str
    bits: str


def ask_canaries(engine: Engine, canaries: Canaries) -> CanaryAnswer:
    """Return what `engine` answers to `canaries`: equal for all workers of a strict job.

    Raises:
        DeterminismBroken: A prompt was answered otherwise alone than among others, or with another
            probability.
        UsageError: The engine does not answer one of them.
    """
    alone: dict[int, Finished] = {}
    for prompt in canaries.prompts:
        alone |= _answer(engine, [prompt])
    # Fillers on both sides: a place in the batch is part of what must not show.
    half = len(canaries.fillers) // 2
    together = _answer(engine, [*canaries.fillers[:half], *canaries.prompts, *canaries.fillers[half:]])
    for prompt in canaries.prompts:
        one, other = alone[prompt.ordinal], together[prompt.ordinal]
        if _describe(one) != _describe(other):
            raise _refuse(engine.facts, "one prompt two answers", _describe(one), _describe(other))
        if one.logprob != other.logprob:
            raise _refuse(
                engine.facts,
                "one answer two log-probabilities, so that longer ones would come out otherwise",
                repr(one.logprob),
                repr(other.logprob),
            )
    return CanaryAnswer(
        texts=_digest({ordinal: _describe(answer) for ordinal, answer in together.items()}),
        bits=_digest({ordinal: _spell_logprob(answer) for ordinal, answer in together.items()}),
    )


def _answer(engine: Engine, requests: Sequence[Request]) -> dict[int, Finished]:
    for request in requests:
        engine.add(request)
    answers: dict[int, Finished] = {}
    while len(answers) < len(requests):
        for outcome in engine.step():
            answers[outcome.ordinal] = _take(outcome)
    return answers


def _take(outcome: Outcome) -> Finished:
    if isinstance(outcome, Failed):
        raise UsageError(
            f"the engine would not answer a plain prompt: {outcome.code}: {outcome.message}\n"
            "it would not answer any other: look at the sampling and engine settings"
        )
    return outcome


def _describe(answer: Finished) -> str:
    return f"{answer.response!r} ({answer.completion_tokens} tokens, {answer.finish_reason})"


def _spell_logprob(answer: Finished) -> str:
    return "" if answer.logprob is None else answer.logprob.hex()


def _digest(answers: Mapping[int, str]) -> str:
    text = "\0".join(f"{ordinal} {answers[ordinal]}" for ordinal in sorted(answers))
    return blake3(text.encode()).hexdigest(length=16)


def _refuse(facts: EngineFacts, gave: str, alone: str, among: str) -> DeterminismBroken:
    what = "\n".join(f"  {name}: {value}" for name, value in facts.describe().items())
    return DeterminismBroken(
        f"the engine gave {gave}, alone and among others:\n"
        f"  alone:  {alone}\n  among:  {among}\n"
        f"it is\n{what}\n"
        "strict determinism cannot be kept here; run with --determinism fast, whose samples are as good "
        "but differ between batches"
    )
