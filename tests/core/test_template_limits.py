"""Templates that never end or that ask for too much memory fail alone, always with the same words."""

from pathlib import Path

import pytest
from conftest import Command, write_jsonl

from synthia_batch.core import template_limits
from synthia_batch.core.sandbox import make_sandbox
from synthia_batch.core.template_limits import MOST_BYTES, TemplateTooLong, render_limited
from synthia_batch.core.types import Message
from synthia_batch.errors import SampleRefused
from synthia_batch.models.prompts.formats import ChatFormat

ENDLESS = {
    "loops in loops": "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}",
    "macros that branch": "{% macro m(n) %}{{ m(n-1) ~ m(n-1) if n }}{% endmacro %}{{ m(60) }}",
    "filters in filters": "{{ ([range(99999)] * 99999)|map('list')|map('length')|list|length }}",
    "a recursive loop": "{% for a in x recursive %}{{ loop(x) if loop.depth < 40 }}{% endfor %}",
}
LARGE = {
    "a product": "{{ 'a' * 10**10 }}",
    "a list": "{{ ([1] * 10**10)|length }}",
    "a power": "{{ 9 ** (9 ** 9) }}",
    "doubled in a loop": "{% set n = namespace(t='aaaaaaaaaa') %}"
    "{% for a in range(60) %}{% set n.t = n.t ~ n.t %}{% endfor %}",
    "doubled in blocks": "{% set t = 'aaaaaaaaaa' %}" + "{% set t %}{{ t }}{{ t }}{% endset %}" * 40,
    "added": "{% set t = 'aaaaaaaaaa' %}" + "{% set t = t + t %}" * 40,
    "squared": "{% set t = 10 %}" + "{% set t = t * t %}" * 40,
    "a width": "{{ 'a'|center(10**10) }}",
    "a method's width": "{{ 'a'.ljust(10**10) }}",
    "a format's width": "{{ '{:>9999999999}'.format(1) }}",
    "an operator's width": "{{ '%9999999999d' % 1 }}",
    "a filter's width": "{{ '%9999999999d'|format(1) }}",
    "replaced": "{% set t = 'a' * 1000000 %}{{ t|replace('a', t) }}",
    "replaced by a method": "{% set t = 'a' * 1000000 %}{{ t.replace('a', t) }}",
    "joined": "{% set t = 'a' * 1000000 %}{{ t|join(t) }}",
    "joined by a method": "{% set t = 'a' * 1000000 %}{{ t.join(t) }}",
    "written again and again": "{% set t = 'a' * 1000000 %}{% for a in range(99999) %}{{ t }}{% endfor %}",
}


@pytest.mark.parametrize("text", [*ENDLESS.values(), *LARGE.values()], ids=[*ENDLESS, *LARGE])
def test_a_template_without_measure_fails_with_one_message(
    text: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(template_limits, "MOST_SECONDS", 1)
    template = make_sandbox(extensions=["jinja2.ext.loopcontrols"]).from_string(text)
    with pytest.raises(TemplateTooLong, match=r"^it takes more than 200,000 steps, 1 s or 64 MiB of text$"):
        render_limited(template, x=[1, 2])


def test_a_template_within_measure_renders_what_jinja_renders() -> None:
    text = (
        "{% for a in x %}{{ loop.index }}{{ a ~ '-' ~ a }}{% if a == 2 %}{% break %}{% endif %}{% else %}none"
        "{% endfor %}{% set y %} {{ x|join(', ') }} {% endset %}{{ y|trim|center(10) }}{{ '%03d' % 7 }}"
        "{{ 2 ** 10 }}{{ 'ab' * 2 }}{{ x|map(attribute='real')|join('+') }}{{ x|map(attribute='real')|sum }}"
        "{{ 'abc'.replace('b', 'xx') }}{{ '{:>4}'.format(1) }}{{ [3, 1]|sort|join('', attribute='real') }}"
    )
    template = make_sandbox(extensions=["jinja2.ext.loopcontrols"]).from_string(text)
    expected = "11-122-2 1, 2, 3  007" + "1024" + "abab" + "1+2+3" + "6" + "axxc" + "   1" + "13"
    assert render_limited(template, x=[1, 2, 3]) == expected
    assert template.render(x=[1, 2, 3]) == expected
    whole = make_sandbox().from_string("{{ t }}")
    assert len(render_limited(whole, t="a" * MOST_BYTES)) == MOST_BYTES


def test_a_row_whose_template_never_ends_fails_and_the_job_goes_on(synthia: Command, tmp_path: Path) -> None:
    write_jsonl(tmp_path / "q.jsonl", [{"n": 1}, {"n": 99999}, {"n": 2}])
    inner = "{% for a in range(n) %}{% for b in range(n) %}.{% endfor %}{% endfor %}"
    (tmp_path / "ask.jinja").write_text(inner)
    done = synthia(
        "run", "q.jsonl", "--engine", "scripted", "--pool", "local", "--prompt-template", "ask.jinja",
        "--on-bad-row", "fail", "-o", "out",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "2 of 3 samples finished, 1 failed" in done.stderr
    assert "it takes more than 200,000 steps" in synthia("failed", "out").stdout


def test_a_conversation_whose_chat_template_never_ends_fails_and_the_job_goes_on() -> None:
    inner = "{% for a in range(m.content|int) %}{% for b in range(99999) %}{% endfor %}{% endfor %}"
    template = f"{{% for m in messages %}}{inner}{{% endfor %}}ok"
    chat = ChatFormat(template, {})
    assert chat.write([Message("user", "1")]) == "ok"
    with pytest.raises(SampleRefused, match="it takes more than 200,000 steps"):
        chat.write([Message("user", "99999")])
