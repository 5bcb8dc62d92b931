"""The Jinja dialect of chat templates, as transformers documents it."""

import json
import re
from datetime import UTC, datetime
from typing import Any

import jinja2
from jinja2 import nodes
from jinja2.ext import Extension
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

from synthia_batch.core.errors import SampleRefused
from synthia_batch.core.sandbox import make_sandbox

CLOCK = "strftime_now"
"""The function by which a template asks for today."""
_ADDRESS = re.compile(r"0x[0-9A-Fa-f]{6,}")


def make_environment(day: str) -> ImmutableSandboxedEnvironment:
    """Return the Jinja dialect of chat templates, as transformers documents it, at midnight of `day`."""
    environment = make_sandbox(extensions=["jinja2.ext.loopcontrols", _GenerationBlocks])
    environment.globals["raise_exception"] = _raise_exception
    environment.globals[CLOCK] = datetime.fromisoformat(day).replace(tzinfo=UTC).strftime
    environment.filters["tojson"] = to_json
    return environment


class _GenerationBlocks(Extension):
    """`{% generation %}...{% endgeneration %}`: marks the model's text for training; plain text here."""

    tags = {"generation"}  # noqa: RUF012  (as Jinja declares it)

    def parse(self, parser: Parser) -> nodes.Node:
        """Return the block's content in a scope of its own, as in transformers."""
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return nodes.Scope(body).set_lineno(line)


def describe_failure(exc: Exception) -> str:
    """Return why a template failed: the same text in every process for the same conversation."""
    if isinstance(exc, RecursionError):
        what = "it recurses without end"  # The interpreter's message depends on where the stack ended.
    elif isinstance(exc, jinja2.TemplateError):
        what = str(exc)
    else:
        what = f"{type(exc).__name__}: {exc}"
    return f"the model's chat template: {_ADDRESS.sub('0x...', what)}"


def _raise_exception(message: str) -> None:
    raise jinja2.TemplateError(message)


def to_json(value: Any, ensure_ascii: bool = False, indent: int | None = None, **options: Any) -> str:
    """Return `value` as JSON, with the defaults of transformers' filter."""
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, **options)


def cut_after(prompt: str, answer: str) -> str:
    """Return `prompt` up to the end of its last `answer`, as transformers' continue_final_message does."""
    start = prompt.rfind(answer.strip())
    if start < 0:
        raise SampleRefused(
            "prompt_not_expressible", "the model's chat template changes the answer that is to be continued"
        )
    whole = answer.lstrip()
    # Templates may strip a message: then it ends where its text ends.
    return prompt[: start + len(whole if prompt.startswith(whole, start) else answer.strip())]
