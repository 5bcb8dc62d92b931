"""Where the prompts of a job are cut for a prefix cache in strict determinism.

The cuts depend on the prompt and the job alone, so that a prompt is always computed in the same pieces. An
engine rounds each down to full blocks, and computes what is between two of them by a request of its own.

- The opening: what the template, the system message and the fixed start of --prompt-template put before the
  text of the row.
- All of a prompt but its last token, if others begin with it: several samples of a row, or its next turn.
- The cuts of the turn before, as far as its prompt is the beginning of this one. What was decoded is never
  taken: an answer is computed again as part of the next prompt.
"""

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import takewhile

from synthia_batch.core.errors import SampleRefused
from synthia_batch.core.types import Message, Sample
from synthia_batch.job.resolved import ResolvedJob
from synthia_batch.models.prompts.tokenizer import Renderer

MIN_SEGMENT_TOKENS = 64
"""Between two cuts. Below it, a request of its own costs about as much as it saves."""
_UNLIKE = ("Alpha", "7 zones")
"""Two texts of a user that begin differently."""
_OPENINGS = 256
"""Openings that are kept: a job has as many as system messages, unless rows have their own."""


@dataclass(frozen=True, slots=True)
class CutPrompt:
    """A prompt and its cuts: numbers of tokens, ascending."""

    token_ids: Sequence[int]
    cuts: tuple[int, ...]


class PromptCutter:
    """Cuts the prompts of a job, of which each gets up to so many `answers`.

    `fixed_text` is what begins every question of its rows, if anything does.
    """

    def __init__(self, renderer: Renderer, answers: int, fixed_text: str = "") -> None:
        self._renderer = renderer
        self._answers = answers
        self._fixed_text = fixed_text
        self._render_opening = lru_cache(_OPENINGS)(self._render_opening_anew)

    def cut(
        self, sample: Sample, token_ids: Sequence[int], previous: CutPrompt | None, *, is_last: bool
    ) -> CutPrompt:
        """Return the prompt `token_ids` of a turn of `sample` with its cuts.

        `previous` is that of the turn before, None for the first; `is_last`: no other turn follows.
        """
        if previous is None:
            cuts = self._cut_opening(sample, token_ids)
        else:
            shared = count_shared(previous.token_ids, token_ids)
            cuts = tuple(cut for cut in previous.cuts if cut <= shared)
        is_shared = not is_last or (previous is None and self._answers > 1)
        whole = len(token_ids) - 1
        if is_shared and whole - (cuts[-1] if cuts else 0) >= MIN_SEGMENT_TOKENS:
            cuts = (*cuts, whole)
        return CutPrompt(token_ids, cuts)

    def _cut_opening(self, sample: Sample, token_ids: Sequence[int]) -> tuple[int, ...]:
        before = tuple(takewhile(lambda message: message.role != "user", sample.messages))
        if len(before) == len(sample.messages):
            return ()
        question = sample.messages[len(before)].content
        fixed = self._fixed_text if question.startswith(self._fixed_text) else ""
        beside = json.dumps([list(sample.row.tools), dict(sample.row.template_kwargs)])
        opening = self._render_opening(before, fixed, beside)
        # Where the question begins, a token may have some of both.
        if not opening:
            return ()
        shared = count_shared(opening, token_ids[: len(token_ids) - 1])
        return (shared,) if shared >= MIN_SEGMENT_TOKENS else ()

    def _render_opening_anew(self, before: tuple[Message, ...], fixed: str, beside: str) -> Sequence[int]:
        """Return the tokens common to all prompts of `before` and a question that begins with `fixed`."""
        tools, kwargs = json.loads(beside)
        try:
            one, other = (
                self._renderer.render((*before, Message("user", fixed + text)), tools, kwargs)
                for text in _UNLIKE
            )
        except SampleRefused:  # A template may require more than one message.
            return ()
        return one[: count_shared(one, other)]


def open_cutter(job: ResolvedJob, renderer: Renderer) -> PromptCutter | None:
    """Return the cutter of `job`'s prompts, None if its engines do not cut them."""
    if not job.engine.cuts_prefixes:
        return None
    fixed_text = re.split(r"\{[{%#]", job.prompt_template or "", maxsplit=1)[0]
    answers = job.plan.num_samples * (1 if job.declared.accept is None else job.declared.max_candidates)
    return PromptCutter(renderer, answers, fixed_text)


def count_shared(one: Sequence[int], other: Sequence[int]) -> int:
    """Return how many tokens both begin with."""
    length = min(len(one), len(other))
    if one[:length] == other[:length]:
        return length
    return next(n for n in range(length) if one[n] != other[n])
