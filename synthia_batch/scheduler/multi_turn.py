"""Multi-turn conversations: each answer becomes part of the prompt of the next question.

A request is for one turn, and turns are journaled; the conversation is the sample, and ends with its
last turn. Prompts are always rendered from the journaled text of the answers, never from an engine's
tokens, so a resumed conversation continues with the same prompts.
"""

import dataclasses
from bisect import bisect_left
from collections.abc import Callable, Sequence
from dataclasses import KW_ONLY, dataclass, field
from functools import partial

from synthia_batch.core.errors import SampleRefused
from synthia_batch.core.types import (
    Failed,
    Finished,
    Outcome,
    Record,
    Request,
    Row,
    RowSampling,
    Sample,
    Structure,
    Turn,
)
from synthia_batch.job.plan import choose_row_adapter, derive_turn_seed, limit_answer
from synthia_batch.job.resolved import ResolvedJob
from synthia_batch.models.prompts.formats import NO_ARGUMENTS, Arguments
from synthia_batch.models.prompts.tokenizer import Renderer, open_renderer
from synthia_batch.scheduler.acceptance import Acceptance, open_acceptance
from synthia_batch.scheduler.answer_check import read_required_call, separate_reasoning, validate_answer
from synthia_batch.scheduler.conversation import (
    CONTEXT_OVERFLOW,
    CONTEXT_TRUNCATED,
    PROMPT_TOO_LONG,
    Context,
    Conversation,
    fail_turn,
    make_turn,
    sum_up,
)
from synthia_batch.scheduler.prompt_cuts import PromptCutter, open_cutter


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """Result of an outcome: the record to store, and the request for the next turn if there is one."""

    record: Record
    request: Request | None = None


def record_as_it_is(outcome: Outcome) -> Step:
    """Return the step of a sample that is stored as the engine returned it."""
    return Step(record=outcome)


def _choose_none(row: Row) -> None:
    """Return no adapter, for the base model."""


@dataclass(slots=True)
class MultiTurnSession:
    """Renders the requests of samples, parses the answers, and holds the conversations in between.

    `choose_adapter` returns the LoRA adapter for a row, `structure` is required of answers whose row has
    none. With `sends_messages`, requests include the conversation, for engines that render prompts.
    Without `reads_reasoning`, the engine has already separated it from the answer. With `sends_tools`, it
    finds tool calls in answers. `template_kwargs` are the job's. With a `cutter`, requests say where their
    prompts are cut for a prefix cache. With an `acceptance`, samples are of one turn, and the turns that are
    finished are answers that were not accepted. Otherwise a sample of one turn is not held, except for what
    its row wants.
    """

    renderer: Renderer
    context: Context
    choose_adapter: Callable[[Row], str | None] = _choose_none
    structure: Structure | None = None
    _: KW_ONLY
    sends_messages: bool = False
    reads_reasoning: bool = True
    sends_tools: bool = False
    template_kwargs: Arguments = field(default_factory=lambda: NO_ARGUMENTS)
    cutter: PromptCutter | None = None
    acceptance: Acceptance | None = None
    _structures: dict[int, Structure] = field(default_factory=dict, init=False)
    _required_calls: dict[int, RowSampling] = field(default_factory=dict, init=False)
    _arguments: dict[int, Arguments] = field(default_factory=dict, init=False)
    _conversations: dict[int, Conversation] = field(default_factory=dict, init=False)
    _continued: set[int] = field(default_factory=set, init=False)

    def begin(self, sample: Sample, turns: Sequence[Turn] = ()) -> Request:
        """Return the first request for `sample`, or the one after the `turns` that are finished.

        Raises:
            SampleRefused: Its row is bad, or its prompt cannot be rendered.
        """
        if sample.row.fault is not None:
            raise SampleRefused("bad_row", sample.row.fault)
        conversation = Conversation(sample, [])
        for turn in turns:
            if self.cutter is not None:  # A prompt is cut where those before it were.
                self._write_prompt(conversation)
            conversation.turns.append(turn)
        request = self._make_request(conversation)
        if sample.row.follow_ups or self.acceptance is not None:
            self._conversations[sample.ordinal] = conversation
        return request

    def advance(self, outcome: Outcome) -> Step:
        """Return the next step after the outcome of a request."""
        answer: Finished | None = None
        if isinstance(outcome, Finished):
            answer = self._parse(outcome)
            outcome = self._validate(answer)
        else:
            self._structures.pop(outcome.ordinal, None)
            self._required_calls.pop(outcome.ordinal, None)
            self._arguments.pop(outcome.ordinal, None)
        conversation = self._conversations.get(outcome.ordinal)
        if conversation is None:
            return Step(record=outcome)
        if self.acceptance is not None:
            step = Step(record=outcome) if answer is None else self._choose(conversation, answer, outcome)
        elif isinstance(outcome, Finished):
            step = self._answer(conversation, outcome)
        else:
            step = self._finish_failed(conversation, outcome)
        if step.request is None:
            del self._conversations[outcome.ordinal]
        return step

    def _parse(self, finished: Finished) -> Finished:
        kwargs = self._arguments.pop(finished.ordinal, NO_ARGUMENTS)
        if finished.ordinal in self._continued:  # It follows an answer: what it reasons, if so, came before.
            self._continued.discard(finished.ordinal)
            return finished
        if self.renderer.thinks and not self.reads_reasoning:
            return finished
        return separate_reasoning(finished, lambda text: self.renderer.read(text, kwargs))

    def _validate(self, finished: Finished) -> Outcome:
        structure = self._structures.pop(finished.ordinal, self.structure)
        required = self._required_calls.pop(finished.ordinal, None)
        outcome = finished if structure is None else validate_answer(structure, finished)
        return outcome if required is None else read_required_call(required, outcome)

    def _answer(self, conversation: Conversation, finished: Finished) -> Step:
        reason = CONTEXT_TRUNCATED if conversation.is_truncated else finished.finish_reason
        turn = make_turn(finished, len(conversation.turns), reason)
        conversation.turns.append(turn)
        if len(conversation.turns) == conversation.questions:
            return Step(record=sum_up(conversation, finished.reasoning, finished.called))
        try:
            return Step(record=turn, request=self._make_request(conversation))
        except SampleRefused as refused:
            if refused.code == CONTEXT_OVERFLOW and self.context.on_overflow == "stop":
                stopped = sum_up(conversation, finished.reasoning)
                return Step(record=dataclasses.replace(stopped, finish_reason=CONTEXT_OVERFLOW))
            failed = Failed(ordinal=finished.ordinal, code=refused.code, message=str(refused))
            return Step(record=fail_turn(conversation, failed))

    def _choose(self, conversation: Conversation, answer: Finished, outcome: Outcome) -> Step:
        """Return the step after an `answer`: it is accepted, or another is asked for.

        `outcome` is the answer, or failed if it lacks the structure that is required of it.
        """
        number = len(conversation.turns)
        if self.acceptance is None:
            raise ValueError("every answer is accepted")
        ended = self.acceptance.judge(conversation.sample.row, answer, outcome, number + 1)
        if ended is not None:
            return Step(record=ended)
        turn = make_turn(answer, number, answer.finish_reason, is_candidate=True)
        conversation.turns.append(turn)
        return Step(record=turn, request=self._make_request(conversation))

    def _finish_failed(self, conversation: Conversation, failed: Failed) -> Step:
        """Return the step after a failed turn. Only a server may know that a prompt is too long."""
        if not conversation.turns or failed.code != PROMPT_TOO_LONG:
            return Step(record=fail_turn(conversation, failed))
        if self.context.on_overflow == "stop":
            stopped = sum_up(conversation, None)
            return Step(record=dataclasses.replace(stopped, finish_reason=CONTEXT_OVERFLOW))
        return Step(record=fail_turn(conversation, dataclasses.replace(failed, code=CONTEXT_OVERFLOW)))

    def _make_request(self, conversation: Conversation) -> Request:
        """Return the request for the next turn, or raise SampleRefused."""
        number, sample = len(conversation.turns), conversation.sample
        token_ids = self._write_prompt(conversation)
        if sample.prefill and (self.acceptance is not None or not number):
            self._continued.add(sample.ordinal)
        if sample.row.template_kwargs:
            self._arguments[sample.ordinal] = sample.row.template_kwargs
        request = Request(
            ordinal=sample.ordinal,
            token_ids=token_ids,
            seed=derive_turn_seed(sample.seed, number),
            turn=number,
            adapter=self.choose_adapter(sample.row),
            template_kwargs={**self.template_kwargs, **sample.row.template_kwargs} or None,
            messages=sample.join(conversation.previous_answers) if self.sends_messages else (),
            tools=sample.row.tools if self.sends_tools else (),
            cuts=conversation.prompt.cuts if conversation.prompt is not None else (),
        )
        return request if sample.row.sampling is None else self._set_sampling(request, sample.row)

    def _write_prompt(self, conversation: Conversation) -> Sequence[int]:
        """Return the prompt of the next turn, or raise SampleRefused."""
        number = 0 if self.acceptance is not None else len(conversation.turns)
        longest, left_out = self.context.limit_prompt(conversation.sample.row), 0
        token_ids = self._render(conversation, left_out)
        if number and self.context.on_overflow == "truncate-oldest" and len(token_ids) > longest:
            left_out = bisect_left(
                range(number), True, key=lambda n: len(self._render(conversation, n)) <= longest
            )
            token_ids = self._render(conversation, left_out)
        if number and len(token_ids) >= self.context.max_model_len:  # the engine refuses a first one
            raise SampleRefused(
                CONTEXT_OVERFLOW,
                f"the prompt has {len(token_ids)} tokens; max_model_len is {self.context.max_model_len}",
            )
        conversation.is_truncated = left_out > 0
        if self.cutter is not None:
            is_last = number + 1 == conversation.questions
            conversation.prompt = self.cutter.cut(
                conversation.sample, token_ids, conversation.prompt, is_last=is_last
            )
        return token_ids

    def _set_sampling(self, request: Request, row: Row) -> Request:
        """Return `request` with its row's own sampling settings.

        Every request of such a job has its limit set, so that the dispatcher can compare them.
        """
        own = row.sampling or RowSampling()
        explicit = dict(own.values)
        if "stop" in explicit:
            explicit["stop"] = tuple(dict.fromkeys((*explicit["stop"], *self.renderer.stop)))
        explicit.pop("max_tokens", None)
        if own.structure is not None:
            self._structures[request.ordinal] = own.structure
        if own.tool_choice in ("required", "named"):
            self._required_calls[request.ordinal] = own
        return dataclasses.replace(
            request,
            max_tokens=limit_answer(row, self.context.max_tokens),
            sampling=explicit or None,
            structure=own.structure,
            logprobs=own.logprobs,
            tools=request.tools if own.tool_choice == "auto" else (),
        )

    def _render(self, conversation: Conversation, left_out: int) -> Sequence[int]:
        """Return the prompt of the next turn without the oldest `left_out` questions and answers."""
        messages = conversation.sample.join(conversation.previous_answers)
        system = len(conversation.sample.messages) - 1
        kept = (*messages[:system], *messages[system + 2 * left_out :])
        row = conversation.sample.row
        if row.tools and self.sends_messages:
            raise SampleRefused("prompt_not_expressible", "tools are not sent to a server")
        if row.template_kwargs and self.sends_messages:
            raise SampleRefused("prompt_not_expressible", "chat_template_kwargs are not sent to a server")
        return self.renderer.render(kept, row.tools, row.template_kwargs)


def open_multi_turn(job: ResolvedJob) -> MultiTurnSession:
    context = Context(
        max_model_len=job.engine.max_model_len,
        max_tokens=job.engine.sampling.max_tokens,
        on_overflow=job.declared.on_overflow,
    )
    renderer = open_renderer(job.prompt)
    return MultiTurnSession(
        renderer,
        context,
        partial(choose_row_adapter, job.adapter),
        job.engine.structure,
        sends_messages=job.engine.takes_messages,
        reads_reasoning=not job.engine.parses_reasoning,
        sends_tools=job.engine.parses_tool_calls,
        template_kwargs=job.prompt.kwargs,
        cutter=open_cutter(job, renderer),
        acceptance=open_acceptance(job.declared),
    )
