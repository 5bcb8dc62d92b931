"""Which answers a job accepts: the expression `accept`, about the row's kept columns and the answer."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from synthia_batch.core.formatting import shorten
from synthia_batch.core.types import Failed, Finished, Row
from synthia_batch.errors import UsageError
from synthia_batch.inputs.records.expressions import (
    JSON,
    Expression,
    ExpressionFailed,
    SampleNames,
    open_kept,
    parse,
)
from synthia_batch.job.schema import Job
from synthia_batch.job.select import ACCEPT_FAILED, NOT_ACCEPTED

SHOWN_CHARACTERS = 2000
"""Of the last candidate, in the message of such a sample."""
_OF_ANSWER = ("response", "reasoning", "finish_reason", "completion_tokens", JSON)


class AnswerRefused(Exception):
    """Another candidate is to be generated, for the reason in the message."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Acceptance:
    """At most `max_candidates` answers are generated for a sample, until one is accepted."""

    expression: Expression
    max_candidates: int

    def check(self, row: Row, answer: Finished) -> None:
        """Return if the `answer` to `row` is accepted.

        Raises:
            AnswerRefused: It is not.
            ExpressionFailed: The expression has no value for it.
        """
        of_answer = {name: getattr(answer, name) for name in _OF_ANSWER if name != JSON}
        kept = {name: open_kept(value) for name, value in row.kept.items()}
        values: dict[str, Any] = {"id": row.id, **kept, **of_answer}
        if JSON in self.expression.columns:
            values[JSON] = parse(answer.response)
        if not self.expression.evaluate(values):
            raise AnswerRefused(self.expression.text)


def open_acceptance(job: Job) -> Acceptance | None:
    """Return the acceptance of `job`, None if it accepts every answer. Raises as `compile_acceptance`."""
    kept = [job.input.rename_columns.get(name, name) for name in job.input.keep_columns]
    return compile_acceptance(job, kept, {})


def compile_acceptance(job: Job, kept: Sequence[str], runs: Mapping[str, Sequence[str]]) -> Acceptance | None:
    """Return the acceptance of `job`, None if it accepts every answer.

    `kept` are the columns that it keeps. Of those in `runs`, samples of earlier runs, the names behind them
    are checked, too.

    Raises:
        UsageError: It is no expression, or names what is neither a kept column nor of the answer.
    """
    if job.accept is None:
        return None
    if JSON in kept:
        raise UsageError(f"accept: {JSON} is the parsed response; keep that column under another name")
    plain = [name for name in kept if name not in runs]
    names = SampleNames(job="", runs=runs, plain=(*plain, *_OF_ANSWER))
    expression = Expression("accept", job.accept, names)
    return Acceptance(expression=expression, max_candidates=job.max_candidates)


def fail_refused(answer: Finished, number: int, why: str) -> Failed:
    """Return the failed sample of which `answer`, the last of `number` candidates, was refused."""
    count = "its only answer was" if number == 1 else f"none of {number} answers was"
    text = shorten(answer.response, SHOWN_CHARACTERS)
    return Failed(
        ordinal=answer.ordinal, code=NOT_ACCEPTED, message=f"{count} accepted ({why}); the last: {text}"
    )


def fail_expression(answer: Finished, exc: ExpressionFailed) -> Failed:
    """Return the failed sample on which the expression fails."""
    return Failed(ordinal=answer.ordinal, code=ACCEPT_FAILED, message=f"accept: {exc}")
