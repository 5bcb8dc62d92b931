"""Conversations turn by turn, without engines: prompts, seeds, overflow, and what they come to."""

from dataclasses import replace

import pytest

from synthia_batch.core.types import Failed, Finished, Message, Request, Row, Sample, Turn
from synthia_batch.job.plan import derive_turn_seed, expand_row
from synthia_batch.job.resolved import PlanSpec, SystemText
from synthia_batch.job.schema import OnOverflow
from synthia_batch.models.prompts.formats import ChatFormat, PlainChatFormat
from synthia_batch.models.prompts.tokenizer import ByteTokenizer, Renderer
from synthia_batch.scheduler.conversation import Context
from synthia_batch.scheduler.multi_turn import MultiTurnSession

SYSTEM = "Be kind."
PLAN = PlanSpec(
    systems=(SystemText(name="kind", text=SYSTEM),), system_column=None, replace_own_system=True,
    num_samples=1, seed=3, plays_turns=True,
)  # fmt: skip
THINKING = "{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}<assistant>{# </think> #}"


def make_sample(*questions: str) -> Sample:
    row = Row(
        index=0, id="a", messages=(Message("user", questions[0]),), system=None, kept={}, line=1,
        follow_ups=questions[1:],
    )  # fmt: skip
    (sample,) = expand_row(row, PLAN)
    return sample


def open_multi_turn(
    max_model_len: int = 10_000, on_overflow: OnOverflow = "fail", max_tokens: int = 20
) -> MultiTurnSession:
    context = Context(max_model_len=max_model_len, max_tokens=max_tokens, on_overflow=on_overflow)
    return MultiTurnSession(Renderer(PlainChatFormat(), ByteTokenizer()), context)


def answer(request: Request, text: str, reason: str = "stop") -> Finished:
    return Finished(
        ordinal=request.ordinal, response=text, reasoning=None, finish_reason=reason,
        prompt_tokens=len(request.token_ids), completion_tokens=len(text), turn=request.turn,
    )  # fmt: skip


def write_prompt(*turns: str) -> bytes:
    roles = ("user", "assistant")
    said = "".join(f"<{roles[place % 2]}>\n{turn}\n" for place, turn in enumerate(turns))
    return f"<system>\n{SYSTEM}\n{said}<assistant>\n".encode()


def play(conversations: MultiTurnSession, sample: Sample, *answers: str) -> list[Request | Finished | Failed]:
    """Answer every turn; return its requests and what the conversation came to."""
    request: Request | None = conversations.begin(sample)
    seen: list[Request | Finished | Failed] = []
    for text in answers:
        assert request is not None
        seen.append(request)
        step = conversations.advance(answer(request, text))
        request = step.request
        if request is None:
            assert not isinstance(step.record, Turn)
            return [*seen, step.record]
    raise AssertionError("the conversation has more turns than answers")


def test_each_answer_goes_into_the_prompt_of_the_next_question() -> None:
    first, second, third, made = play(open_multi_turn(), make_sample("a?", "b?", "c?"), "A.", "B.", "C.")
    assert isinstance(first, Request)
    assert isinstance(second, Request)
    assert isinstance(third, Request)
    assert first.token_ids == write_prompt("a?")
    assert second.token_ids == write_prompt("a?", "A.", "b?")
    assert third.token_ids == write_prompt("a?", "A.", "b?", "B.", "c?")
    assert [request.turn for request in (first, second, third)] == [0, 1, 2]
    assert made == Finished(
        ordinal=0,
        response="C.",
        reasoning=None,
        finish_reason="stop",
        prompt_tokens=sum(len(request.token_ids) for request in (first, second, third)),
        completion_tokens=6,
        earlier=("A.", "B."),
    )


def test_every_turn_has_a_seed_of_its_own_and_the_first_that_of_the_sample() -> None:
    sample = make_sample("a?", "b?", "c?")
    *requests, _ = play(open_multi_turn(), sample, "A.", "B.", "C.")
    seeds = [request.seed for request in requests if isinstance(request, Request)]
    assert seeds == [derive_turn_seed(sample.seed, turn) for turn in range(3)]
    assert seeds[0] == sample.seed
    assert len(set(seeds)) == 3
    assert all(0 <= seed < 2**63 for seed in seeds)


def test_the_seed_of_a_turn_is_what_it_was_yesterday() -> None:
    """Another one would make other bytes of the same job: then OUTPUT_FORMAT has to change."""
    assert derive_turn_seed(12345, 1) == 6083285931500733678


def test_a_conversation_of_one_question_is_a_prompt() -> None:
    sample = make_sample("a?")
    conversations = open_multi_turn()
    request = conversations.begin(sample)
    assert request == Request(ordinal=0, token_ids=write_prompt("a?"), seed=sample.seed)
    made = answer(request, "A.")
    assert conversations.advance(made).record == made


@pytest.mark.parametrize("finished", [1, 2])
def test_a_resumed_conversation_asks_as_the_undisturbed_one_did(finished: int) -> None:
    sample = make_sample("a?", "b?", "c?")
    conversations = open_multi_turn()
    request: Request | None = conversations.begin(sample)
    turns = []
    for text in ("A. ", "B.\n")[:finished]:
        assert request is not None
        step = conversations.advance(answer(request, text))
        assert isinstance(step.record, Turn)
        turns.append(step.record)
        request = step.request
    resumed = open_multi_turn()
    assert resumed.begin(sample, turns) == request
    assert [turn.number for turn in turns] == list(range(finished))


def test_an_answer_is_read_once_and_its_reasoning_stays_out_of_later_prompts() -> None:
    """Read twice, an answer whose reasoning was cut off would be taken for a reasoning again."""
    thinking = MultiTurnSession(
        Renderer(ChatFormat(THINKING, {}), ByteTokenizer()),
        Context(max_model_len=1000, max_tokens=10, on_overflow="fail"),
    )
    request = thinking.begin(make_sample("a?", "b?"))
    step = thinking.advance(answer(request, "<think>hm</think>A."))
    assert isinstance(step.record, Turn)
    assert step.record.response == "A."
    assert step.request is not None
    assert bytes(step.request.token_ids).endswith(b"<user>a?<assistant>A.<user>b?<assistant>")
    last = thinking.advance(answer(step.request, "<think>so</think>B.")).record
    assert isinstance(last, Finished)
    assert (last.response, last.reasoning, last.earlier) == ("B.", "so", ("A.",))


@pytest.mark.parametrize(
    ("reasons", "expected"),
    [
        (("stop", "stop"), "stop"),
        (("length", "stop"), "length"),
        (("stop", "length"), "length"),
        (("stop", "abort"), "abort"),
    ],
)
def test_the_finish_reason_tells_of_any_turn_that_was_cut_short(
    reasons: tuple[str, ...], expected: str
) -> None:
    conversations = open_multi_turn()
    step = conversations.advance(answer(conversations.begin(make_sample("a?", "b?")), "A.", reasons[0]))
    assert step.request is not None
    made = conversations.advance(answer(step.request, "B.", reasons[1])).record
    assert isinstance(made, Finished)
    assert made.finish_reason == expected


LONG = "A" * 60
QUESTIONS = ("a?", "b?", "c?")


def measure(*turns: str) -> int:
    return len(write_prompt(*turns))


def test_overflow_fails_with_the_answers_so_far() -> None:
    limit = measure("a?", LONG, "b?", LONG, "c?")
    *_, failed = play(open_multi_turn(limit), make_sample(*QUESTIONS), LONG, LONG)
    assert failed == Failed(
        ordinal=0,
        code="context_overflow",
        message=f"turn 3 of 3: the prompt has {limit} tokens; max_model_len is {limit}",
        earlier=(LONG, LONG),
    )


def test_there_is_no_overflow_where_one_token_has_room() -> None:
    limit = measure("a?", LONG, "b?", LONG, "c?") + 1
    *_, made = play(open_multi_turn(limit), make_sample(*QUESTIONS), LONG, LONG, "C")
    assert isinstance(made, Finished)
    assert made.finish_reason == "stop"


def test_overflow_stops_with_the_answers_so_far() -> None:
    limit = measure("a?", LONG, "b?", LONG, "c?")
    *requests, made = play(open_multi_turn(limit, "stop"), make_sample(*QUESTIONS), LONG, LONG)
    assert isinstance(made, Finished)
    assert (made.response, made.earlier, made.finish_reason) == (LONG, (LONG,), "context_overflow")
    assert made.completion_tokens == 120
    assert len(requests) == 2


def test_overflow_leaves_out_the_oldest_turns_of_the_prompt_only() -> None:
    limit = measure("b?", LONG, "c?") + 20
    conversations = open_multi_turn(limit, "truncate-oldest", max_tokens=20)
    *requests, last, made = play(conversations, make_sample(*QUESTIONS), LONG, LONG, "C.")
    assert isinstance(last, Request)
    assert last.token_ids == write_prompt("b?", LONG, "c?"), "the system message stays"
    assert isinstance(made, Finished)
    assert (made.response, made.earlier) == ("C.", (LONG, LONG)), "nothing is lost of the output"
    assert made.finish_reason == "context_truncated"
    assert len(requests) == 2


def test_as_few_turns_are_left_out_as_make_room_for_a_whole_answer() -> None:
    conversations = open_multi_turn(measure("b?", LONG, "c?") + 19, "truncate-oldest", max_tokens=20)
    *_, last, _ = play(conversations, make_sample(*QUESTIONS), LONG, LONG, "C.")
    assert isinstance(last, Request)
    assert last.token_ids == write_prompt("c?")


def test_a_generous_limit_of_answers_leaves_no_turn_out_before_half_of_the_context_is_full() -> None:
    longest = measure("a?", "A.", "b?")
    conversations = open_multi_turn(2 * longest, "truncate-oldest", max_tokens=100_000)
    *_, last, made = play(conversations, make_sample("a?", "b?"), "A.", "B.")
    assert isinstance(last, Request)
    assert last.token_ids == write_prompt("a?", "A.", "b?")
    assert isinstance(made, Finished)
    assert made.finish_reason == "stop"


def test_a_question_that_has_no_room_by_itself_fails_whatever_is_left_out() -> None:
    conversations = open_multi_turn(measure("x" * 100), "truncate-oldest")
    *_, failed = play(conversations, make_sample("a?", "x" * 100), "A.")
    assert isinstance(failed, Failed)
    assert (failed.code, failed.earlier) == ("context_overflow", ("A.",))
    assert failed.message.startswith("turn 2 of 2: ")


def test_truncation_is_found_again_by_a_resumed_conversation() -> None:
    questions = [f"{n}?" for n in range(9)]
    limit = measure("a?", LONG, "b?", LONG, "c?") + 20
    requests = [
        request
        for request in play(open_multi_turn(limit, "truncate-oldest"), make_sample(*questions), *[LONG] * 9)
        if isinstance(request, Request)
    ]
    turns = [
        Turn(ordinal=0, number=n, response=LONG, finish_reason="stop", prompt_tokens=1, completion_tokens=1)
        for n in range(8)
    ]
    for number in range(1, 9):
        conversations = open_multi_turn(limit, "truncate-oldest")
        assert conversations.begin(make_sample(*questions), turns[:number]) == requests[number]
        if number == 8:
            made = conversations.advance(answer(requests[8], "end")).record
            assert isinstance(made, Finished)
            assert made.finish_reason == "context_truncated"


def test_the_first_prompt_is_the_engines_to_refuse_whatever_the_policy() -> None:
    sample = make_sample("x" * 100, "b?")
    conversations = open_multi_turn(50, "stop")
    request = conversations.begin(sample)
    refused = Failed(ordinal=0, code="prompt_too_long", message="the prompt has 150 tokens")
    assert conversations.advance(refused).record == refused
    assert request.token_ids == write_prompt("x" * 100)


def test_a_failure_says_in_which_turn_it_was() -> None:
    conversations = open_multi_turn()
    step = conversations.advance(answer(conversations.begin(make_sample("a?", "b?")), "A."))
    assert step.request is not None
    crash = Failed(ordinal=0, code="engine_crash", message="the engine died")
    assert conversations.advance(crash).record == replace(
        crash, message="turn 2 of 2: the engine died", earlier=("A.",)
    )


def test_a_template_that_refuses_a_later_turn_fails_that_conversation() -> None:
    template = "{% if messages|length > 2 %}{{ raise_exception('no') }}{% endif %}{{ messages[0].content }}"
    conversations = MultiTurnSession(
        Renderer(ChatFormat(template, {}), ByteTokenizer()),
        Context(max_model_len=1000, max_tokens=10, on_overflow="stop"),
    )
    failed = conversations.advance(answer(conversations.begin(make_sample("a?", "b?")), "A.")).record
    assert isinstance(failed, Failed)
    assert failed.code == "prompt_not_expressible"
    assert failed.message == "turn 2 of 2: the model's chat template: no"
    assert failed.earlier == ("A.",)
