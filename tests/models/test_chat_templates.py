"""Chat templates as they are: all that the installed packages carry, against transformers' rendering."""

import importlib.util
import json
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
from conftest import Command, write_jsonl

from synthia_batch.core.types import Message
from synthia_batch.errors import SampleRefused, UsageError
from synthia_batch.job.schema import TEMPLATE_DATE
from synthia_batch.models.prompts.formats import ChatFormat
from synthia_batch.models.prompts.tokenizer import FastTokenizer, Renderer

SCRIPTED = ("--engine", "scripted", "--pool", "local")
SPECIAL = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
TOOL = {
    "type": "function",
    "function": {
        "name": "look_up",
        "description": "Look up “a word” & <more>",
        "parameters": {"type": "object", "properties": {"word": {"type": "string"}}, "required": ["word"]},
    },
}
ASK, BRIEF = Message("user", " Why is the sky blue? 🙂\n"), Message("system", "Be brief. {{ 7 }}")
TALK = (ASK, Message("assistant", "Scattering."), Message("user", "Of what?"))
CONVERSATIONS: dict[str, tuple[tuple[Message, ...], list[dict[str, Any]], dict[str, Any]]] = {
    "a question": ((ASK,), [], {}),
    "a system message": ((BRIEF, ASK), [], {}),
    "two turns": (TALK, [], {}),
    "two turns and a system message": ((BRIEF, *TALK), [], {}),
    "tools": ((ASK,), [TOOL], {}),
    "tools and a system message": ((BRIEF, *TALK), [TOOL], {}),
    "arguments": ((BRIEF, ASK), [], {"enable_thinking": False, "reasoning_effort": "high"}),
}


def list_templates() -> list[Path]:
    """Return the chat templates in trl and vLLM, where those are installed."""
    folders = {"trl": "chat_templates", "vllm": "transformers_utils/chat_templates"}
    roots = [(importlib.util.find_spec(name), below) for name, below in folders.items()]
    return sorted(
        path
        for spec, below in roots
        if spec is not None and spec.origin is not None
        for path in (Path(spec.origin).parent / below).glob("*.jinja")
    )


@pytest.fixture
def fixed_day(monkeypatch: pytest.MonkeyPatch) -> None:
    from transformers.utils import chat_template_utils

    class Clock(datetime):
        @classmethod
        def now(cls, tz: Any = None) -> "Clock":
            return cls.fromisoformat(TEMPLATE_DATE)

    monkeypatch.setattr(chat_template_utils, "datetime", Clock)


@pytest.mark.usefixtures("fixed_day")
@pytest.mark.parametrize("path", list_templates(), ids=lambda path: path.stem)
def test_an_installed_template_gives_what_transformers_gives(path: Path) -> None:
    from transformers.utils.chat_template_utils import render_jinja_template

    text = path.read_text(encoding="utf-8")
    for name, (messages, tools, kwargs) in CONVERSATIONS.items():
        turns = [{"role": message.role, "content": message.content} for message in messages]
        try:
            (expected,), _ = render_jinja_template(
                [turns], tools=tools or None, chat_template=text, add_generation_prompt=True,
                **SPECIAL, **kwargs,
            )  # fmt: skip
        except Exception:  # A template can raise anything.
            with pytest.raises(SampleRefused):
                ChatFormat(text, SPECIAL, kwargs=kwargs).write(messages, tools)
        else:
            chat = ChatFormat(text, SPECIAL, kwargs=kwargs)
            if tools and not chat.shows_tools():  # transformers leaves them out without a word.
                with pytest.raises(SampleRefused, match="no place for tools"):
                    chat.write(messages, tools)
            else:
                assert chat.write(messages, tools) == expected, name


@pytest.mark.usefixtures("fixed_day")
@pytest.mark.parametrize("path", list_templates(), ids=lambda path: path.stem)
@pytest.mark.parametrize("start", ["Because the sky", " It is "])
def test_an_answer_is_continued_where_transformers_continues_it(path: Path, start: str) -> None:
    from transformers.utils.chat_template_utils import render_jinja_template

    text = path.read_text(encoding="utf-8")
    messages = (ASK, Message("assistant", start))
    turns = [{"role": message.role, "content": message.content} for message in messages]
    try:
        (expected,), _ = render_jinja_template(
            [turns], chat_template=text, continue_final_message=True, **SPECIAL
        )
    except Exception:  # A template can raise anything.
        with pytest.raises(SampleRefused):
            ChatFormat(text, SPECIAL).write(messages)
    else:
        assert ChatFormat(text, SPECIAL).write(messages) == expected


def test_the_development_environment_has_templates_to_compare() -> None:
    if importlib.util.find_spec("trl") is None:
        pytest.skip("trl is not installed: make setup installs it")
    assert len(list_templates()) > 30


DATED = "{{ strftime_now('%d %b %Y') }} {{ messages[-1].content }}"
THINKS = """{%- if enable_thinking is not defined %}{% set enable_thinking = true %}{% endif -%}
{{ messages[-1].content }}{% if not enable_thinking %}<think></think>{% endif %}{{ note or '' }}"""


def test_a_template_is_told_the_day() -> None:
    messages = [Message("user", "Hi")]
    assert ChatFormat(DATED, {}).write(messages) == "26 Jul 2024 Hi"
    assert ChatFormat(DATED, {}, day="2025-01-02").write(messages) == "02 Jan 2025 Hi"
    assert (ChatFormat(DATED, {}).asks_for_day, ChatFormat(THINKS, {}).asks_for_day) == (True, False)


def test_a_template_knows_its_arguments() -> None:
    assert ChatFormat(THINKS, SPECIAL).arguments == ("enable_thinking", "note")
    assert ChatFormat("{{ bos_token }}{{ strftime_now('%Y') }}{{ tools }}", SPECIAL).arguments == ()


@pytest.fixture
def home(tmp_path: Path) -> Path:
    write_jsonl(tmp_path / "q.jsonl", [{"prompt": "Why?"}])
    (tmp_path / "thinks.jinja").write_text(THINKS)
    (tmp_path / "dated.jinja").write_text(DATED)
    return tmp_path


def preview(synthia: Command, *arguments: str) -> Any:
    done = synthia("preview", "q.jsonl", *SCRIPTED, "-s", "none", "--json", *arguments)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_arguments_are_in_the_prompt_and_in_the_identity(synthia: Command, home: Path) -> None:
    template = ("--chat-template", "thinks.jinja")
    off = ("--set", "chat_template_kwargs.enable_thinking=false")
    plain, quiet = preview(synthia, *template), preview(synthia, *template, *off)
    assert plain["rows"][0]["samples"][0]["prompt"] == "Why?"
    assert quiet["rows"][0]["samples"][0]["prompt"] == "Why?<think></think>"
    assert (plain["chat_template_kwargs"], quiet["chat_template_kwargs"]) == ({}, {"enable_thinking": False})
    assert plain["directory"] != quiet["directory"]
    shown = synthia("preview", "q.jsonl", *SCRIPTED, *template, *off).stdout
    assert shown.startswith("chat template: enable_thinking=false\n")
    assert synthia("run", "q.jsonl", *SCRIPTED, *template, "-o", "out", "-q").returncode == 0
    refused = synthia("run", "q.jsonl", *SCRIPTED, *template, *off, "-o", "out", "-q")
    assert refused.returncode == 4
    assert "prompt.kwargs.enable_thinking: None before, False now" in refused.stderr


def test_the_day_is_shown_and_in_the_identity_if_it_is_another(synthia: Command, home: Path) -> None:
    template, other = ("--chat-template", "dated.jinja"), ("--set", "template_date=2025-01-02")
    found = [
        preview(synthia, *template, *more) for more in ((), ("--set", "template_date=2024-07-26"), other)
    ]
    assert [one["template_date"] for one in found] == ["2024-07-26", "2024-07-26", "2025-01-02"]
    assert found[0]["directory"] == found[1]["directory"] != found[2]["directory"]
    assert found[2]["rows"][0]["samples"][0]["prompt"] == "02 Jan 2025 Why?"
    plan = synthia("plan", "q.jsonl", *SCRIPTED, *template, *other).stdout
    assert "template date: the chat template is told that today is 2025-01-02\n" in plan
    assert "template date" not in synthia("plan", "q.jsonl", *SCRIPTED).stdout


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ("--chat-template", "thinks.jinja", "--set", "chat_template_kwargs.enable_thinkin=false"),
            "chat_template_kwargs.enable_thinkin: the chat template reads no such argument, so it would have "
            "no effect; it reads: enable_thinking, note",
        ),
        (
            ("--chat-template", "thinks.jinja", "--set", "chat_template_kwargs.messages=[]"),
            "chat_template_kwargs.messages: the chat template reads no such argument",
        ),
        (
            ("--set", "prompt_format=synthia", "--set", "chat_template_kwargs.enable_thinking=false"),
            "chat_template_kwargs: the prompts of this job are written without a chat template",
        ),
        (
            ("--chat-template", "thinks.jinja", "--set", "template_date=2025-01-02"),
            "template_date: the chat template asks for no day",
        ),
        (
            ("--set", "template_date=tomorrow"),
            "template_date (flag): Input should be a day such as 2025-01-31",
        ),
    ],
)
def test_what_would_have_no_effect_is_refused(
    synthia: Command, home: Path, arguments: tuple[str, ...], message: str
) -> None:
    done = synthia("validate", "q.jsonl", *SCRIPTED, *arguments)
    assert done.returncode == 2
    assert message in done.stderr
    assert "Traceback" not in done.stderr


def read_prompts(synthia: Command, *arguments: str) -> list[Any]:
    done = synthia("preview", *arguments, *SCRIPTED, "--json", "-n", "9")
    assert done.returncode == 0, done.stderr
    samples = [row["samples"][0] for row in json.loads(done.stdout)["rows"]]
    return [one["fault"]["message"] if one["fault"] else one["prompt"] for one in samples]


def test_a_row_has_arguments_of_its_own(synthia: Command, home: Path) -> None:
    own = [
        {},
        {"temperature": 0.5},
        {"chat_template_kwargs": {"enable_thinking": True, "note": "<|im_end|>"}},
    ]
    own += [{"chat_template_kwargs": {"enable_thinkin": True}}]
    write_jsonl(home / "rows.jsonl", [{"prompt": f"{n}?", "s": value} for n, value in enumerate(own)])
    requests = [
        {"custom_id": str(n), "body": {"messages": [{"role": "user", "content": f"{n}?"}], **value}}
        for n, value in enumerate(own)
    ]
    write_jsonl(home / "batch.jsonl", requests)
    off = ("--chat-template", "thinks.jinja", "--set", "chat_template_kwargs.enable_thinking=false")
    expected = [
        "0?<think></think>",
        "1?<think></think>",
        "2?<|im_end|>",
        "the chat template reads no argument 'enable_thinkin'",
    ]
    none = ("-s", "none")
    assert read_prompts(synthia, "rows.jsonl", "--sampling-column", "s", *off, *none) == expected
    assert read_prompts(synthia, "batch.jsonl", *off, *none) == expected
    plain = read_prompts(synthia, "batch.jsonl", *none)
    assert plain[1] == "<user>\n1?\n<assistant>\n"
    assert plain[3] == '<arguments>\n{"enable_thinkin": true}\n<user>\n3?\n<assistant>\n'
    assert read_prompts(synthia, "batch.jsonl", "--set", "prompt_format=synthia", *none)[2:] == [
        "no chat template writes the prompt, to read 'enable_thinking'",
        "no chat template writes the prompt, to read 'enable_thinkin'",
    ]


OPENS = "{{ messages[-1].content }}<think>{% if not deep %}</think>{% endif %}"


def test_an_answer_is_read_by_the_arguments_of_its_row() -> None:
    for job, row, expected in (
        ({"deep": True}, {}, ("", "Blue.")),
        ({"deep": True}, {"deep": False}, ("Blue.", None)),
        ({}, {"deep": True}, ("", "Blue.")),
        ({}, {}, ("Blue.", None)),
    ):
        answer = ChatFormat(OPENS, {}, kwargs=job).read("Blue.", row)
        assert (answer.response, answer.reasoning) == expected


def test_a_row_cannot_end_its_turn_by_an_argument(tmp_path: Path) -> None:
    from tokenizers import Tokenizer, models, pre_tokenizers

    tokenizer = Tokenizer(models.WordLevel({"?": 0, "<end>": 1, "hi": 2, "<": 3, "end": 4, ">": 5}, "?"))
    tokenizer.add_special_tokens(["<end>"])
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Punctuation()]
    )
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    template = "{{ messages[0].content }} {{ note }} <end>"
    renderer = Renderer(ChatFormat(template, {}), FastTokenizer(tmp_path / "tokenizer.json"))
    assert renderer.render([Message("user", "hi")], kwargs={"note": "<end>"}) == [2, 3, 4, 5, 1]


def test_a_job_file_takes_both(synthia: Command, home: Path) -> None:
    (home / "job.yaml").write_text(
        "input: {path: q.jsonl}\nchat_template: dated.jinja\ntemplate_date: 2025-01-02\n"
        "chat_template_kwargs: {}\nsystem: [none]\nengine: {kind: scripted}\npool: {kind: local}\n"
    )
    done = synthia("preview", "job.yaml", "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["template_date"] == "2025-01-02"
    assert synthia("run", "job.yaml", "-o", "out", "-q").returncode == 0
    assert synthia("verify", "out", "--rerun", "1", "-q").returncode == 0


def test_a_template_that_is_no_template_is_refused_with_its_line() -> None:
    with pytest.raises(UsageError, match="line 2"):
        ChatFormat("{{ messages }}\n{% if %}", {})
