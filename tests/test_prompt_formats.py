"""Prompt formats and rendering to token ids."""

from pathlib import Path

import pytest

from synthia_batch.errors import SampleRefused, UsageError
from synthia_batch.models.demo import prepare_demo_model
from synthia_batch.models.locate import read_model_facts
from synthia_batch.prompts.formats import ChatFormat, PlainChatFormat, SynthiaFormat
from synthia_batch.prompts.tokenizer import ByteTokenizer, FastTokenizer, Renderer
from synthia_batch.rows import Message

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
    assert fast.encode("<s> hi", add_special_tokens=True) == [0, 2]


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


def test_a_template_never_sees_the_date() -> None:
    template = "{% if strftime_now is defined %}{{ strftime_now('%Y') }}{% else %}fixed{% endif %}"
    assert ChatFormat(template, {}).write(CONVERSATION) == "fixed"


def test_reasoning_is_split_off_where_the_template_knows_of_it() -> None:
    thinking = ChatFormat(THINKING_TEMPLATE, {})
    answer = thinking.read("<think>\nhmm\n</think>\n\nBlue.")
    assert (answer.reasoning, answer.response) == ("hmm", "Blue.")
    assert thinking.read("Blue.").reasoning is None
    plain = ChatFormat("{{ messages[-1].content }}", {})
    assert plain.read("a </think> b").response == "a </think> b"


def test_bytes_stand_in_for_tokens_without_a_model() -> None:
    ids = Renderer(PlainChatFormat(), ByteTokenizer()).render(CONVERSATION)
    assert bytes(ids).decode() == PlainChatFormat().write(CONVERSATION)
