"""Where prompts are cut: the same places for the same prompt, live and resumed."""

import dataclasses

import pytest
from test_multi_turn import PLAN, answer, make_sample

from synthia_batch.core.types import Message, Request, Sample, Turn
from synthia_batch.job.plan import expand_row
from synthia_batch.models.prompts.formats import ChatFormat, PlainChatFormat, PromptFormat
from synthia_batch.models.prompts.tokenizer import ByteTokenizer, Renderer
from synthia_batch.scheduler.conversation import Context
from synthia_batch.scheduler.multi_turn import MultiTurnSession
from synthia_batch.scheduler.prompt_cuts import MIN_SEGMENT_TOKENS, PromptCutter

LONG = "You are kind, and you answer in as few words as you can, whatever the question is. "


def open_session(samples: int = 1, fixed: str = "", form: PromptFormat | None = None) -> MultiTurnSession:
    renderer = Renderer(form or PlainChatFormat(), ByteTokenizer())
    context = Context(max_model_len=10_000, max_tokens=20, on_overflow="fail")
    return MultiTurnSession(renderer, context, cutter=PromptCutter(renderer, samples, fixed))


def make_long_sample(*questions: str, system: str = LONG) -> Sample:
    sample = make_sample(*questions)
    return dataclasses.replace(sample, messages=(Message("system", system), *sample.messages[1:]))


def cut_text(request: Request) -> list[str]:
    """Return what each cut leaves before it, from the cut before."""
    text = bytes(request.token_ids)
    return [text[a:b].decode() for a, b in zip((0, *request.cuts), request.cuts, strict=False)]


def test_a_prompt_is_cut_where_the_question_begins() -> None:
    for question in ("Why?", "7 zones", "Alpha"):
        request = open_session().begin(make_long_sample(question))
        assert cut_text(request) == [f"<system>\n{LONG}\n<user>\n"]


def test_what_is_short_is_not_cut() -> None:
    request = open_session().begin(make_sample("Why?"))
    assert len(b"<system>\nBe kind.\n<user>\n") < MIN_SEGMENT_TOKENS
    assert request.cuts == ()


def test_the_fixed_start_of_a_prompt_template_belongs_to_the_opening() -> None:
    fixed = "Translate into German, and say nothing else. "
    request = open_session(fixed=fixed).begin(make_long_sample(f"{fixed}A sea."))
    assert cut_text(request) == [f"<system>\n{LONG}\n<user>\n{fixed}"]
    other = open_session(fixed=fixed).begin(make_long_sample("Nothing of the kind"))
    assert cut_text(other) == [f"<system>\n{LONG}\n<user>\n"]


def test_several_samples_share_all_but_the_last_token() -> None:
    question = "And what would you say to somebody who asks for a reason, and then for the next one?"
    request = open_session(samples=2).begin(make_long_sample(question))
    opening, rest = cut_text(request)
    assert opening + rest == bytes(request.token_ids)[:-1].decode()
    assert open_session(samples=2).begin(make_long_sample("Why?")).cuts == (len(opening),)


@pytest.mark.parametrize("finished", [0, 1, 2, 3])
def test_a_turn_is_cut_where_the_turns_before_it_were_live_and_resumed(finished: int) -> None:
    questions = [f"{n}: {'and what follows from it, in your opinion? ' * 2}" for n in range(4)]
    sample = make_long_sample(*questions)
    live = open_session()
    request: Request | None = live.begin(sample)
    turns: list[Turn] = []
    requests = []
    for n in range(4):
        assert request is not None
        requests.append(request)
        step = live.advance(answer(request, f"Answer {n}."))
        request = step.request
        if isinstance(step.record, Turn):
            turns.append(step.record)
    wholes = [len(one.token_ids) - 1 for one in requests]
    opening = requests[0].cuts[0]
    assert requests[0].cuts == (opening, wholes[0])
    assert requests[2].cuts == (opening, *wholes[:3])
    assert requests[3].cuts == (opening, *wholes[:3]), "nothing follows the last turn"
    assert open_session().begin(sample, turns[:finished]) == requests[finished]


def test_a_prompt_that_does_not_go_on_from_the_one_before_keeps_the_opening() -> None:
    """As with --on-overflow truncate-oldest, or a template that leaves out old reasoning."""
    renderer = Renderer(PlainChatFormat(), ByteTokenizer())
    cutter = PromptCutter(renderer, 1)
    sample = make_long_sample("a " * 80, "b " * 80)
    first = cutter.cut(sample, renderer.render(sample.messages), None, is_last=False)
    other = renderer.render([sample.messages[0], Message("user", "b " * 80)])
    assert first.cuts[1] == len(first.token_ids) - 1
    assert cutter.cut(sample, other, first, is_last=True).cuts == first.cuts[:1]


def test_a_template_that_renders_no_single_question_is_not_cut() -> None:
    template = "{{ messages[2].content }}{% for m in messages %}{{ m.content }}{% endfor %}"
    form = ChatFormat(template, {})
    row = make_long_sample("x").row
    messages = (Message("user", LONG), Message("assistant", "y"), Message("user", "z"))
    (sample,) = expand_row(dataclasses.replace(row, messages=messages), PLAN)
    assert open_session(form=form).begin(sample).cuts == ()
