"""Which answers a job accepts: `accept`, about the row's kept columns and the answer."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from synthia_batch.core.errors import UsageError
from synthia_batch.core.formatting import shorten
from synthia_batch.core.types import Failed, Finished, Outcome, Row
from synthia_batch.inputs.records.expressions import (
    JSON,
    Expression,
    ExpressionFailed,
    SampleNames,
    open_kept,
    parse,
)
from synthia_batch.job.accept_function import AcceptFunction
from synthia_batch.job.schema import Job
from synthia_batch.job.select import ACCEPT_FAILED, NOT_ACCEPTED

SHOWN_CHARACTERS = 2000
"""Of the last candidate, in the message of such a sample."""
_IS_SOURCE = re.compile(r"(@.*\n)*def \w+\(")
_OF_ANSWER = ("response", "reasoning", "finish_reason", "completion_tokens", JSON)


@dataclass(frozen=True, slots=True, kw_only=True)
class Acceptance:
    """At most `max_candidates` answers are generated for a sample, until one is accepted."""

    expression: "Expression | _Function"
    max_candidates: int

    def judge(self, row: Row, answer: Finished, outcome: Outcome, number: int) -> Outcome | None:
        """Return what a sample of `row` ends with after its `answer`, the candidate `number`, counted from 1.

        None if another is to be generated. `outcome` is the answer, or failed if it lacks its structure.
        """
        why = self.expression.text
        if isinstance(outcome, Failed):
            why = outcome.message
        else:
            try:
                if self._accepts(row, outcome):
                    return replace(outcome, candidates=number, turn=0)
            except ExpressionFailed as exc:
                return Failed(ordinal=answer.ordinal, code=ACCEPT_FAILED, message=f"accept: {exc}")
        # All answers of such a row are the same.
        is_greedy = row.sampling is not None and row.sampling.values.get("temperature") == 0
        return _fail(answer, number, why) if is_greedy or number == self.max_candidates else None

    def _accepts(self, row: Row, answer: Finished) -> bool:
        of_answer = {name: getattr(answer, name) for name in _OF_ANSWER if name != JSON}
        is_function = isinstance(self.expression, _Function)
        kept = {name: value if is_function else open_kept(value) for name, value in row.kept.items()}
        values: dict[str, Any] = {"id": row.id, **kept, **of_answer}
        if JSON in self.expression.columns:
            values[JSON] = parse(answer.response)
        return bool(self.expression.evaluate(values))


@dataclass(frozen=True, slots=True)
class _Function:
    """A function in the place of an expression: see AcceptFunction."""

    source: AcceptFunction
    columns: tuple[str, ...] = (JSON,)

    @property
    def text(self) -> str:
        return self.source.function.__name__

    def evaluate(self, values: Mapping[str, Any]) -> object:
        try:
            return self.source.function(values)
        except Exception as exc:
            raise ExpressionFailed(f"{self.text}: {type(exc).__name__}: {exc}") from exc


def open_acceptance(job: Job) -> Acceptance | None:
    """Return the acceptance of `job`, None if it accepts every answer. Raises as `compile_acceptance`."""
    kept = [job.input.rename_columns.get(name, name) for name in job.input.kept]
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
    if job.sampling.temperature == 0 and job.max_candidates > 1:
        raise UsageError(
            "accept: at temperature 0 every answer is the same; set sampling.temperature, or max_candidates=1"
        )
    if JSON in kept:
        raise UsageError(f"accept: {JSON} is the parsed response; keep that column under another name")
    if isinstance(job.accept, AcceptFunction):
        return Acceptance(expression=_Function(job.accept), max_candidates=job.max_candidates)
    if _IS_SOURCE.match(job.accept):
        raise UsageError(
            "accept: this job was run from Python, with the function of which the saved job has the source; "
            "go on there, with run_job and the same function as `accept`"
        )
    plain = [name for name in kept if name not in runs]
    names = SampleNames(job="", runs=runs, plain=(*plain, *_OF_ANSWER))
    expression = Expression("accept", job.accept, names)
    return Acceptance(expression=expression, max_candidates=job.max_candidates)


def _fail(answer: Finished, number: int, why: str) -> Failed:
    count = "its only answer was" if number == 1 else f"none of {number} answers was"
    text = shorten(answer.response, SHOWN_CHARACTERS)
    return Failed(
        ordinal=answer.ordinal, code=NOT_ACCEPTED, message=f"{count} accepted ({why}); the last: {text}"
    )
