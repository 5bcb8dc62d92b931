"""A check at every start that an engine's answers do not depend on the rest of its batch.

A few prompts of different lengths are run alone, one at a time, and then all together among fillers that
end one after the other, so that the batch is different at every step. The cost is in
benchmarks/results/2026-11-21-determinism.md.

Texts must be equal and, if the engine reports log-probabilities, these too, to the last bit: they differ
long before one of the few tokens here does. Otherwise the engine is refused. On a CPU where only the
probabilities differed, 395 of 512 longer texts differed (benchmarks/results/2026-11-22-amx.md).

Effects of batches larger than the canary's need `verify --rerun` or, for the tested engines, the matrix of
benchmarks/determinism.py.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from blake3 import blake3

from synthia_batch.core.errors import DeterminismBroken, UsageError
from synthia_batch.core.types import Failed, Finished, Outcome, Request
from synthia_batch.job.resolved import EngineSpec
from synthia_batch.workers.engine import Engine, EngineFacts


@dataclass(frozen=True, slots=True, kw_only=True)
class Canaries:
    """`prompts` are run alone and together with `fillers`. All ordinals are below 0."""

    prompts: tuple[Request, ...]
    fillers: tuple[Request, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class CanaryAnswer:
    """Digests of an engine's answers: of the texts, and of their exact log-probabilities."""

    texts: str
    bits: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Loaded:
    """A loaded engine's facts, and its answer to the canaries, if they were run."""

    facts: EngineFacts
    canary: CanaryAnswer | None


def run_canaries(engine: Engine, canaries: Canaries) -> CanaryAnswer:
    """Return the digests of the answers to `canaries`, which are equal for all workers of a strict job.

    Raises:
        DeterminismBroken: The answer to a prompt, or its log-probability, differs alone and in a batch.
        UsageError: The engine fails to answer one of them.
    """
    alone: dict[int, Finished] = {}
    for prompt in canaries.prompts:
        alone |= _answer(engine, [prompt])
    # Fillers on both sides: the position in the batch must not matter either.
    half = len(canaries.fillers) // 2
    together = _answer(engine, [*canaries.fillers[:half], *canaries.prompts, *canaries.fillers[half:]])
    for prompt in canaries.prompts:
        one, other = alone[prompt.ordinal], together[prompt.ordinal]
        if _describe(one) != _describe(other):
            raise _refuse(engine.facts, "one prompt two answers", _describe(one), _describe(other))
        if one.logprob != other.logprob:
            raise _refuse(
                engine.facts,
                "one answer two log-probabilities, so longer answers would differ",
                repr(one.logprob),
                repr(other.logprob),
            )
    return CanaryAnswer(
        texts=_digest({ordinal: _describe(answer) for ordinal, answer in together.items()}),
        bits=_digest({ordinal: _format_logprob(answer) for ordinal, answer in together.items()}),
    )


def adopt_spec(engine: Engine, spec: EngineSpec, canaries: Canaries | None) -> Loaded:
    """Use `engine` for `spec`, and return what one that was loaded for it returns."""
    engine.adopt(spec)
    return Loaded(facts=engine.facts, canary=run_canaries(engine, canaries) if canaries else None)


def _answer(engine: Engine, requests: Sequence[Request]) -> dict[int, Finished]:
    for request in requests:
        engine.add(request)
    answers: dict[int, Finished] = {}
    while len(answers) < len(requests):
        for outcome in engine.step():
            answers[outcome.ordinal] = _check_finished(outcome)
    return answers


def _check_finished(outcome: Outcome) -> Finished:
    if isinstance(outcome, Failed):
        raise UsageError(
            f"the engine failed to answer a plain prompt: {outcome.code}: {outcome.message}\n"
            "it would fail on every other prompt too: check the sampling and engine settings"
        )
    return outcome


def _describe(answer: Finished) -> str:
    return f"{answer.response!r} ({answer.completion_tokens} tokens, {answer.finish_reason})"


def _format_logprob(answer: Finished) -> str:
    return "" if answer.logprob is None else answer.logprob.hex()


def _digest(answers: Mapping[int, str]) -> str:
    text = "\0".join(f"{ordinal} {answers[ordinal]}" for ordinal in sorted(answers))
    return blake3(text.encode()).hexdigest(length=16)


def _refuse(facts: EngineFacts, difference: str, alone: str, batched: str) -> DeterminismBroken:
    engine = "\n".join(f"  {name}: {value}" for name, value in facts.describe().items())
    return DeterminismBroken(
        f"the engine gave {difference}, alone and in a batch:\n"
        f"  alone:  {alone}\n  batch:  {batched}\n"
        f"the engine is\n{engine}\n"
        "strict determinism is not possible here; use --determinism fast, whose samples are as good but "
        "differ between batches"
    )
