"""A conversation of several turns, and the sample that it becomes."""

import dataclasses
from dataclasses import dataclass

from synthia_batch.core.counts import CUT_OFF
from synthia_batch.core.types import Failed, Finished, Message, Row, Sample, Turn
from synthia_batch.job.plan import limit_answer
from synthia_batch.job.schema import OnOverflow
from synthia_batch.scheduler.prompt_cuts import CutPrompt

PROMPT_TOO_LONG = "prompt_too_long"
"""The code with which an engine refuses a prompt that leaves no room for an answer."""
CONTEXT_OVERFLOW = "context_overflow"
"""The next prompt had no room for an answer: finish_reason of a stopped, code of a failed conversation."""
CONTEXT_TRUNCATED = "context_truncated"
"""The finish_reason of a conversation in which a prompt lacked the oldest turns."""
REASONS_BY_PRIORITY = (CONTEXT_OVERFLOW, CONTEXT_TRUNCATED, CUT_OFF)
"""A conversation's finish_reason is the first of these that one of its turns has, else its last turn's."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Context:
    """Limits of prompts in tokens, and the policy for later turns that exceed them.

    `max_tokens` is the limit of an answer unless its row has its own.
    """

    max_model_len: int
    max_tokens: int
    on_overflow: OnOverflow

    def limit_prompt(self, row: Row) -> int:
        """Return the tokens that a prompt of `row` may have before its oldest turns are left out.

        This leaves room for a whole answer, so that answers before the overflow are not cut short, but
        at most half of the context: a generous max_tokens must not leave out turns from the start.
        """
        return self.max_model_len - min(limit_answer(row, self.max_tokens), self.max_model_len // 2)


@dataclass(slots=True)
class Conversation:
    """An unfinished conversation. `is_truncated`: the prompt of its current turn lacks old turns.

    `prompt` is the last one that was written, if prompts are cut.
    """

    sample: Sample
    turns: list[Turn]
    is_truncated: bool = False
    prompt: CutPrompt | None = None

    @property
    def questions(self) -> int:
        return 1 + len(self.sample.row.follow_ups)

    @property
    def previous_answers(self) -> tuple[str, ...]:
        return tuple(turn.response for turn in self.turns)


def fail_turn(conversation: Conversation, failed: Failed) -> Failed:
    """Return the failed sample that `conversation` is if its next turn failed as `failed`."""
    if not conversation.turns:
        return failed
    message = f"turn {len(conversation.turns) + 1} of {conversation.questions}: {failed.message}"
    return dataclasses.replace(failed, message=message, earlier=conversation.previous_answers)


def sum_up(conversation: Conversation, reasoning: str | None, called: Message | None = None) -> Finished:
    """Return the sample that consists of all turns of a conversation."""
    turns, answers = conversation.turns, conversation.previous_answers
    reasons = [turn.finish_reason for turn in turns]
    return Finished(
        ordinal=conversation.sample.ordinal,
        response=answers[-1],
        reasoning=reasoning,
        finish_reason=next((reason for reason in REASONS_BY_PRIORITY if reason in reasons), reasons[-1]),
        prompt_tokens=sum(turn.prompt_tokens for turn in turns),
        completion_tokens=sum(turn.completion_tokens for turn in turns),
        earlier=answers[:-1],
        called=called,
    )


def make_turn(finished: Finished, number: int, finish_reason: str, *, is_candidate: bool = False) -> Turn:
    """Return the record of an answer that does not end its sample."""
    return Turn(
        ordinal=finished.ordinal,
        number=number,
        response=finished.response,
        finish_reason=finish_reason,
        prompt_tokens=finished.prompt_tokens,
        completion_tokens=finished.completion_tokens,
        is_candidate=is_candidate,
    )
