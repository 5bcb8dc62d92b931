"""Prompt formats and rendering to token ids."""

from pathlib import Path

import pytest

from synthia_batch.core.types import Message
from synthia_batch.errors import SampleRefused, UsageError
from synthia_batch.models.checkpoint import read_model_facts
from synthia_batch.models.demo import prepare_demo_model
from synthia_batch.models.prompts.formats import ChatFormat, PlainChatFormat, SynthiaFormat
from synthia_batch.models.prompts.tokenizer import ByteTokenizer, FastTokenizer, Renderer

CONVERSATION = (
    Message("system", "Be brief."),
    Message("user", "Why is the sky blue?"),
    Message("assistant", "Scattering."),
    Message("user", "Of what? 🙂"),
)
THINKING_TEMPLATE = "{{ messages[-1].content }}{% if false %}</think>{% endif %}"


def test_the_synthia_format_is_that_of_the_cards() -> None:
    assert SynthiaFormat().write(CONVERSATION) == (
        "SYSTEM: Be brief.\nUSER: Why is the sky blue?\nASSISTANT: Scattering.\nUSER: Of what? 🙂\nASSISTANT:"
    )
    assert SynthiaFormat().write(CONVERSATION[1:2]) == "USER: Why is the sky blue?\nASSISTANT:"
    assert SynthiaFormat().stop == ("USER:",)
    assert SynthiaFormat().read("  Of air.\n").response == "Of air."


@pytest.fixture(scope="module")
def demo_model() -> Path:
    return prepare_demo_model()


def test_the_chat_format_gives_what_transformers_gives(demo_model: Path) -> None:
    from transformers import AutoTokenizer

    reference = AutoTokenizer.from_pretrained(demo_model)
    facts = read_model_facts(demo_model)
    assert facts.chat_template is not None
    chat = ChatFormat(facts.chat_template, facts.special_tokens)
    renderer = Renderer(chat, FastTokenizer(facts.tokenizer_path))
    for messages in (CONVERSATION, CONVERSATION[1:], CONVERSATION[1:2]):
        turns = [{"role": message.role, "content": message.content} for message in messages]
        assert chat.write(messages) == reference.apply_chat_template(
            turns, add_generation_prompt=True, tokenize=False
        )
        expected = reference.apply_chat_template(turns, add_generation_prompt=True, return_dict=False)
        assert list(renderer.render(messages)) == list(expected)


def test_no_start_token_is_ever_doubled(tmp_path: Path) -> None:
    from tokenizers import Tokenizer, models, pre_tokenizers, processors

    tokenizer = Tokenizer(
        models.WordLevel({"<s>": 0, "USER:": 1, "hi": 2, "ASSISTANT:": 3, "?": 4}, unk_token="?")
    )
    tokenizer.add_special_tokens(["<s>"])
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)])
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    fast = FastTokenizer(tmp_path / "tokenizer.json")
    hello = [Message("user", "hi")]
    assert Renderer(SynthiaFormat(), fast).render(hello) == [0, 1, 2, 3]
    template = "<s> USER: {{ messages[0].content }} ASSISTANT:"
    assert Renderer(ChatFormat(template, {}), fast).render(hello) == [0, 1, 2, 3]


def test_a_template_that_refuses_a_conversation_fails_that_sample_only() -> None:
    chat = ChatFormat("{{ raise_exception('roles must alternate') }}", {})
    with pytest.raises(SampleRefused, match="roles must alternate") as refused:
        chat.write(CONVERSATION)
    assert refused.value.code == "prompt_not_expressible"


def test_a_broken_template_is_the_jobs_fault() -> None:
    with pytest.raises(UsageError, match="line 1"):
        ChatFormat("{% if %}", {})


def test_a_template_cannot_reach_out_of_its_sandbox() -> None:
    chat = ChatFormat("{{ messages.__class__.__mro__ }}", {})
    with pytest.raises(SampleRefused):
        chat.write(CONVERSATION)


@pytest.mark.parametrize(
    "template",
    [
        "{{ strftime_now('%d %b %Y') }}",
        "{% if strftime_now is defined %}{{ strftime_now('%d %b %Y') }}{% else %}26 Jul 2024{% endif %}",
    ],
)
def test_a_template_always_sees_the_same_date(template: str) -> None:
    assert ChatFormat(template, {}).write(CONVERSATION) == "26 Jul 2024"


def test_a_template_that_marks_what_the_model_wrote_gives_what_transformers_gives(demo_model: Path) -> None:
    from transformers import AutoTokenizer

    template = """
    {%- for message in messages %}
        {%- if message.role == 'assistant' %}
            {%- generation %}
                {%- set own = 'kept inside' %}
                {{- message.content + eos_token }}
            {%- endgeneration %}
        {%- else %}
            {{- message.role + ': ' + message.content }}
        {% endif %}
        {{- own is defined }}{% generation %} {% endgeneration %}
    {%- endfor %}
    {%- if tools is none and documents is none %} no tools{% endif %}"""
    reference = AutoTokenizer.from_pretrained(demo_model)
    turns = [{"role": message.role, "content": message.content} for message in CONVERSATION]
    expected = reference.apply_chat_template(
        turns, chat_template=template, add_generation_prompt=True, tokenize=False
    )
    assert ChatFormat(template, {"eos_token": reference.eos_token}).write(CONVERSATION) == expected


@pytest.mark.parametrize(
    ("template", "reason"),
    [
        ("{{ 1 // (messages|length - 4) }}", "ZeroDivisionError"),
        ("{% macro deeper() %}{{ deeper() }}{% endmacro %}{{ deeper() }}", "it recurses without end"),
        ("{{ messages[0].content() }}", "TypeError"),
        ("{{ nothing.at_all }}", "'nothing' is undefined"),
        ("{% for n in range(10**9) %}{% endfor %}", "it takes more than 200,000 steps"),
        ("{% macro name() %}{% endmacro %}{{ {}[cycler] }}{{ strftime_now(range) }}", "TypeError"),
    ],
)
def test_whatever_a_template_fails_with_fails_that_sample_only(template: str, reason: str) -> None:
    chat = ChatFormat(template, {})
    messages = set()
    for depth in (0, 50):
        with pytest.raises(SampleRefused, match=reason) as refused:
            write_from_depth(chat, depth)
        messages.add(str(refused.value))
    assert len(messages) == 1, "the same conversation must fail with the same words"


def write_from_depth(chat: ChatFormat, depth: int) -> str:
    return write_from_depth(chat, depth - 1) if depth else chat.write(CONVERSATION)


def test_a_failure_does_not_tell_where_in_memory_something_was() -> None:
    chat = ChatFormat("{{ raise_exception(raise_exception ~ '') }}", {})
    with pytest.raises(SampleRefused, match=r"at 0x\.\.\.>"):
        chat.write(CONVERSATION)


@pytest.mark.parametrize(
    ("template", "name"),
    [
        ("{{ messages | random }}", "random"),
        ("{{ messages[0].content }}\n{% if tools %}{{ [1, 2] | random }}{% endif %}", "random"),
        ("{{ lipsum(n=1) }}", "lipsum"),
        ("{% if false %}{% set filler = lipsum %}{% endif %}", "lipsum"),
    ],
)
def test_a_chat_template_that_draws_lots_is_refused(template: str, name: str) -> None:
    with pytest.raises(UsageError, match=rf"chat template, line \d: {name} gives another text each time"):
        ChatFormat(template, {})


def test_a_random_filter_by_its_name_is_not_there() -> None:
    with pytest.raises(SampleRefused, match="No filter named 'random'"):
        ChatFormat("{{ [messages] | map('random') | list }}", {}).write(CONVERSATION)


@pytest.mark.parametrize(
    "template",
    [
        "{{ messages | map(attribute='content') }}",
        "{{ 'items: ' ~ messages[0].items }}",
        "{{ [joiner()] | join }}",
        "{{ '%s' | format(cycler(1)) }}",
        "{{ raise_exception }}",
        "{{ (messages[0].items | string).replace('<', '[') }}",
    ],
)
def test_an_object_without_a_text_of_its_own_is_refused(template: str) -> None:
    with pytest.raises(SampleRefused, match="an object without a text of its own would be rendered"):
        ChatFormat(template, {}).write(CONVERSATION)


def test_an_address_that_a_message_writes_is_text() -> None:
    pasted = "Why do I see <generator object f at 0x7F3C2A1B4D60>, and {at 0x7f00aa11}?"
    chat = ChatFormat("{{ messages[0].content | lower }} at 0xABCDEF12", {})
    assert chat.write([Message("user", pasted)]) == f"{pasted.lower()} at 0xABCDEF12"


def test_reasoning_is_split_off_where_the_template_knows_of_it() -> None:
    thinking = ChatFormat(THINKING_TEMPLATE, {})
    answer = thinking.read("<think>\nhmm\n</think>\n\nBlue.")
    assert (answer.reasoning, answer.response) == ("hmm", "Blue.")
    assert thinking.read("Blue.").reasoning is None
    plain = ChatFormat("{{ messages[-1].content }}", {})
    assert plain.read("a </think> b").response == "a </think> b"


THINKS_BY_ITSELF = "{{ messages[-1].content.split('</think>')[-1] }}<assistant>\n"
THINKS_AT_ONCE = THINKS_BY_ITSELF + "<think>\n"
THINKS_NEVER = THINKS_BY_ITSELF + "<think>\n\n</think>\n\n"


@pytest.mark.parametrize(
    ("template", "text", "reasoning", "response"),
    [
        (THINKS_BY_ITSELF, "<think>\nhmm", "hmm", ""),
        (THINKS_BY_ITSELF, "\n<think>hmm</think>\nBlue.", "hmm", "Blue."),
        (THINKS_BY_ITSELF, "Blue, I <think>", None, "Blue, I <think>"),
        (THINKS_AT_ONCE, "hmm", "hmm", ""),
        (THINKS_AT_ONCE, "hmm</think>Blue.", "hmm", "Blue."),
        (THINKS_NEVER, "Blue.", None, "Blue."),
        ("{{ messages[-1].content }}<think>", "Blue.", None, "Blue."),
        ("{{ raise_exception('no') }}</think>", "Blue.", None, "Blue."),
    ],
)
def test_reasoning_that_is_cut_off_is_no_response(
    template: str, text: str, reasoning: str | None, response: str
) -> None:
    answer = ChatFormat(template, {}).read(text)
    assert (answer.reasoning, answer.response) == (reasoning, response)


def test_bytes_stand_in_for_tokens_without_a_model() -> None:
    ids = Renderer(PlainChatFormat(), ByteTokenizer()).render(CONVERSATION)
    assert bytes(ids).decode() == PlainChatFormat().write(CONVERSATION)
