"""The proof, at every start, that an engine's answers do not depend on what else is in its batch.

A few prompts of different lengths are asked alone, one after the other, and then all together among
fillers that end one after the other, so that every step of theirs is of another batch. What it costs is
in benchmarks/results/2026-11-21-determinism.md.

It cannot see what shows only in batches larger than its own, or one time in thousands: for that there is
`verify --rerun`, and for the engines that are tested the matrix of benchmarks/determinism.py.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from blake3 import blake3

from synthia_batch.engine.base import Engine, EngineFacts
from synthia_batch.errors import DeterminismBroken, UsageError
from synthia_batch.rows import Failed, Finished, Outcome, Request


@dataclass(frozen=True, slots=True, kw_only=True)
class Canaries:
    """What is asked: `prompts` alone and among, `fillers` only to keep them company. Ordinals below 0."""

    prompts: tuple[Request, ...]
    fillers: tuple[Request, ...] = ()


def ask_canaries(engine: Engine, canaries: Canaries) -> str:
    """Return a digest of what `engine` answers to `canaries`: equal for all workers of a strict job.

    Raises:
        DeterminismBroken: A prompt was answered otherwise alone than among others.
        UsageError: The engine does not answer one of them.
    """
    alone: dict[int, str] = {}
    for prompt in canaries.prompts:
        alone |= _answer(engine, [prompt])
    # Fillers on both sides: a place in the batch is part of what must not show.
    half = len(canaries.fillers) // 2
    together = _answer(engine, [*canaries.fillers[:half], *canaries.prompts, *canaries.fillers[half:]])
    for prompt in canaries.prompts:
        if alone[prompt.ordinal] != together[prompt.ordinal]:
            raise _refuse(engine.facts, alone[prompt.ordinal], together[prompt.ordinal])
    text = "\0".join(f"{ordinal} {together[ordinal]}" for ordinal in sorted(together))
    return blake3(text.encode()).hexdigest(length=16)


def _answer(engine: Engine, requests: Sequence[Request]) -> dict[int, str]:
    for request in requests:
        engine.add(request)
    answers: dict[int, str] = {}
    while len(answers) < len(requests):
        for outcome in engine.step():
            answers[outcome.ordinal] = _describe(outcome)
    return answers


def _describe(outcome: Outcome) -> str:
    match outcome:
        case Finished():
            # To the last bit: long before a token differs, its probability does.
            logprob = "" if outcome.logprob is None else f", log probability {outcome.logprob.hex()}"
            return f"{outcome.response!r} ({outcome.completion_tokens} tokens{logprob})"
        case Failed():
            raise UsageError(
                f"the engine would not answer a plain prompt: {outcome.code}: {outcome.message}\n"
                "it would not answer any other: look at the sampling and engine settings"
            )


def _refuse(facts: EngineFacts, alone: str, among: str) -> DeterminismBroken:
    what = "\n".join(f"  {name}: {value}" for name, value in facts.describe().items())
    return DeterminismBroken(
        "the engine gave one prompt two answers, alone and among others:\n"
        f"  alone:  {alone}\n  among:  {among}\n"
        f"it is\n{what}\n"
        "strict determinism cannot be kept here; run with --determinism fast, whose samples are as good "
        "but differ between batches"
    )
