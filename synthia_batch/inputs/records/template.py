"""Prompts and conversations rendered by a Jinja template from a row's columns.

The sandbox has neither randomness nor time.
"""

import difflib
import json
from collections.abc import Mapping
from functools import lru_cache
from types import TracebackType
from typing import Any

import jinja2
from jinja2 import meta, nodes
from jinja2.sandbox import ImmutableSandboxedEnvironment

from synthia_batch.core.errors import UsageError
from synthia_batch.core.sandbox import make_sandbox, refuse_addresses
from synthia_batch.core.template_limits import render_limited
from synthia_batch.core.types import Message
from synthia_batch.inputs.records.faults import RowFault

ROW = "row"
"""The variable for columns whose names are not identifiers: `row["the name"]`."""
_NAME = "<prompt template>"


class PromptTemplate:
    """A compiled template. `columns` are the names of the columns that it reads, sorted."""

    def __init__(self, text: str, flag: str = "--prompt-template") -> None:
        """Compile `text`, which `flag` names in messages.

        Raises:
            UsageError: It is invalid, reads no column, or uses `row` other than as `row["NAME"]`.
        """
        environment = _make_environment()
        self._source = text
        try:
            tree = environment.parse(text)
            # The file name identifies frames of the template in a traceback.
            code = environment.compile(text, filename=_NAME)
        except jinja2.TemplateSyntaxError as exc:
            raise UsageError(f"{flag}, line {exc.lineno}: {exc.message}; fix the template") from exc
        self.columns = tuple(sorted(_list_columns(tree)))
        self.fields = tuple(
            (node.node.name, node.attr)
            for node in tree.find_all(nodes.Getattr)
            if isinstance(node.node, nodes.Name) and node.node.name in self.columns
        )
        """The names that stand behind a column's."""
        if not self.columns:
            raise UsageError(
                f"{flag}: expected at least one {{{{ COLUMN }}}}, got a template that reads no column: "
                "all prompts would be the same"
            )
        self._template = jinja2.Template.from_code(environment, code, environment.make_globals(None))

    def write(self, record: Mapping[str, Any]) -> tuple[Message, ...]:
        """Return the question that the template renders from `record`. Raises as `render`."""
        return (Message("user", self.render(record)),)

    def render(self, record: Mapping[str, Any]) -> str:
        """Return the text that the template renders from `record`.

        Raises:
            RowFault: The template fails, at the line in the message, or renders nothing.
        """
        values = {name: record[name] for name in self.columns if name in record}
        try:
            text = render_limited(self._template, values, **{ROW: values})
            refuse_addresses(text, self._source, [str(value) for value in values.values()])
        except jinja2.UndefinedError as exc:
            raise RowFault(f"{_place(exc.__traceback__)}: {exc}{_suggest(exc, record)}") from exc
        except Exception as exc:  # A template can raise anything, such as ZeroDivisionError.
            what = "infinite recursion" if isinstance(exc, RecursionError) else str(exc) or type(exc).__name__
            raise RowFault(f"{_place(exc.__traceback__)}: {what}") from exc
        if not text or text.isspace():
            raise RowFault("the prompt template renders a blank prompt")
        return text


@lru_cache(maxsize=8)
def compile_template(text: str) -> PromptTemplate:
    """Return the template of `text`. Raises UsageError."""
    return PromptTemplate(text)


def _make_environment() -> ImmutableSandboxedEnvironment:
    environment = make_sandbox(undefined=jinja2.StrictUndefined, finalize=_refuse_no_text)
    environment.filters["tojson"] = _to_json
    return environment


def _list_columns(tree: nodes.Template) -> set[str]:
    names = set(meta.find_undeclared_variables(tree))
    if ROW not in names:
        return names
    looked_up = {
        id(item.node): item.arg.value
        for item in tree.find_all(nodes.Getitem)
        if isinstance(item.node, nodes.Name) and item.node.name == ROW
        and isinstance(item.arg, nodes.Const) and isinstance(item.arg.value, str)
    }  # fmt: skip
    for name in tree.find_all(nodes.Name):
        if name.name == ROW and id(name) not in looked_up:
            raise UsageError(
                f'--prompt-template, line {name.lineno}: `row` can only be used as row["COLUMN NAME"]; '
                "name the column"
            )
    return (names - {ROW}) | set(looked_up.values())


def _refuse_no_text(value: Any) -> Any:
    """Return `value` unless it is null or a function."""
    if value is None:
        raise jinja2.TemplateRuntimeError(
            "a null would be rendered as None; write {{ NAME or '' }}, or use {% if %}"
        )
    if callable(value) and not isinstance(value, jinja2.Undefined):
        raise jinja2.TemplateRuntimeError("a function would be rendered; call it with ()")
    return value


def _place(trace: TracebackType | None) -> str:
    line = None
    while trace is not None:
        if trace.tb_frame.f_code.co_filename == _NAME:
            line = trace.tb_lineno
        trace = trace.tb_next
    return f"line {line} of the prompt template" if line is not None else "the prompt template"


def _suggest(exc: jinja2.UndefinedError, record: Mapping[str, Any]) -> str:
    missing = str(exc).split("'")[1:2]
    near = difflib.get_close_matches(missing[0], list(record), n=1) if missing else []
    return f"; did you mean {near[0]!r}?" if near else ""


def _to_json(value: Any, indent: int | None = None) -> str:
    return json.dumps(value, ensure_ascii=False, indent=indent)
