"""The proof, at every start, that an engine's tokens do not depend on what else is in its batch."""

from collections.abc import Sequence

from blake3 import blake3

from synthia_batch.engine.base import Engine
from synthia_batch.errors import DeterminismBroken, UsageError
from synthia_batch.rows import Failed, Finished, Outcome, Request


def ask_canaries(engine: Engine, canaries: Sequence[Request]) -> str:
    """Return a digest of what `engine` answers to `canaries`: equal for all workers of a strict job.

    The first canary is asked alone, then all of them together.

    Raises:
        DeterminismBroken: The first answer differs between the two.
        UsageError: The engine answers none of them.
    """
    alone = _answer(engine, canaries[:1])
    together = _answer(engine, canaries)
    first = canaries[0].ordinal
    if alone[first] != together[first]:
        raise DeterminismBroken(
            "the engine gave one prompt two answers, alone and among others:\n"
            f"  alone:  {alone[first]!r}\n  among:  {together[first]!r}\n"
            "strict determinism cannot be kept here; run with --determinism fast, whose samples are as good "
            "but differ between batches"
        )
    text = "\0".join(f"{ordinal} {together[ordinal]}" for ordinal in sorted(together))
    return blake3(text.encode()).hexdigest(length=16)


def _answer(engine: Engine, canaries: Sequence[Request]) -> dict[int, str]:
    for canary in canaries:
        engine.add(canary)
    answers: dict[int, str] = {}
    while len(answers) < len(canaries):
        for outcome in engine.step():
            answers[outcome.ordinal] = _text_of(outcome)
    return answers


def _text_of(outcome: Outcome) -> str:
    match outcome:
        case Finished():
            return outcome.response
        case Failed():
            raise UsageError(
                f"the engine would not answer a plain prompt: {outcome.code}: {outcome.message}\n"
                "it would not answer any other: look at the sampling and engine settings"
            )
