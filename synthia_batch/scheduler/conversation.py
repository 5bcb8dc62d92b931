"""A conversation of several turns, and the sample that it becomes."""

import dataclasses
from dataclasses import dataclass

from synthia_batch.core.counts import CUT_OFF
from synthia_batch.core.types import Failed, Finished, Message, Sample, Turn
from synthia_batch.scheduler.prompt_cuts import CutPrompt

PROMPT_TOO_LONG = "prompt_too_long"
"""The code with which an engine refuses a prompt that leaves no room for an answer."""
CONTEXT_OVERFLOW = "context_overflow"
"""The next prompt had no room for an answer: finish_reason of a stopped, code of a failed conversation."""
CONTEXT_TRUNCATED = "context_truncated"
"""The finish_reason of a conversation in which a prompt lacked the oldest turns."""
REASONS_BY_PRIORITY = (CONTEXT_OVERFLOW, CONTEXT_TRUNCATED, CUT_OFF)
"""A conversation's finish_reason is the first of these that one of its turns has, else its last turn's."""


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
