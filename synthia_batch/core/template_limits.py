"""Limits of a template or an expression: steps, processor time, memory, and the length of its text.

A template is foreign code. Steps and lengths are the same in every process; time and memory are the last
resort, for what few steps can take long.
"""

import functools
import re
import resource
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, cast

import jinja2
from jinja2 import nodes
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.visitor import NodeTransformer

MOST_STEPS = 200_000
MOST_SECONDS = 10.0
MOST_BYTES = 64 * 2**20
"""Of the text, of any text or list on the way to it, and a sixteenth of the memory that may be taken."""
_MOST_MEMORY_KIB = 16 * MOST_BYTES // 1024
_STEPS_PER_LOOK = 16
_MOST_BITS = 100_000
"""Of a whole number: larger ones take quadratic time."""
_LONG_WIDTH = re.compile(r"\d{8,}")
"""The width of a field in a format."""
_COUNT = f"{__name__}.count_step"
_CHECK = f"{__name__}.check_size"
_OPERATORS = frozenset({"+", "*", "**", "%"})


class TemplateTooLong(jinja2.TemplateRuntimeError):
    """A template exceeds its limits."""

    def __init__(self) -> None:
        super().__init__(
            f"it takes more than {MOST_STEPS:,} steps, {MOST_SECONDS:.0f} s or {MOST_BYTES >> 20} MiB of text"
        )


class _Meter(threading.local):
    steps: int | None = None
    end: float = 0.0
    most_kib: int = 0


_meter = _Meter()


def render_limited(template: jinja2.Template, *args: Any, **values: Any) -> str:
    """Return the text that `template` renders from these values. Raises TemplateTooLong."""
    with _measured():
        parts, length = [], 0
        for part in template.generate(*args, **values):
            length += len(part)
            if length > MOST_BYTES:
                raise TemplateTooLong
            parts.append(part)
        return "".join(parts)


def evaluate_limited(expression: Callable[..., Any], *args: Any, **values: Any) -> Any:
    """Return the value of a compiled expression of a `LimitedEnvironment` for these values."""
    with _measured():
        return expression(*args, **values)


@contextmanager
def _measured() -> Iterator[None]:
    _meter.steps = 0
    _meter.end = time.thread_time() + MOST_SECONDS
    _meter.most_kib = _find_peak_kib() + _MOST_MEMORY_KIB
    try:
        yield
    finally:
        _meter.steps = None


def count_step() -> None:
    """Count a step of the template that is being rendered, if any."""
    if _meter.steps is None:
        return
    _meter.steps += 1
    if _meter.steps > MOST_STEPS:
        raise TemplateTooLong
    is_due = _meter.steps % _STEPS_PER_LOOK == 0
    if is_due and (time.thread_time() > _meter.end or _find_peak_kib() > _meter.most_kib):
        raise TemplateTooLong


def _find_peak_kib() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def check_size(value: Any) -> Any:
    """Return `value` unless it is too long a text or list, or too large a number."""
    if isinstance(value, str | list | tuple) and len(value) > MOST_BYTES:
        raise TemplateTooLong
    if isinstance(value, int) and value.bit_length() > _MOST_BITS:
        raise TemplateTooLong
    return value


def _check_arguments(args: tuple[Any, ...], values: dict[str, Any]) -> None:
    """Refuse widths and counts of which one alone would exceed the limits."""
    for value in (*args, *values.values()):
        if isinstance(value, int) and abs(value) > MOST_BYTES:
            raise TemplateTooLong


def _check_format(text: Any) -> None:
    if isinstance(text, str) and _LONG_WIDTH.search(text):
        raise TemplateTooLong


def _check_replacement(text: Any, args: tuple[Any, ...]) -> None:
    if len(args) >= 2 and isinstance(args[0], str) and isinstance(args[1], str):
        found = str(text).count(args[0])
        if found * (len(args[1]) - len(args[0])) > MOST_BYTES:
            raise TemplateTooLong


class LimitedEnvironment(ImmutableSandboxedEnvironment):
    """Jinja's sandbox, whose templates count their steps. Render them by `render_limited`."""

    intercepted_binops = _OPERATORS

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.filters = {name: _limit(name, function) for name, function in self.filters.items()}

    def _parse(self, source: str, name: str | None, filename: str | None) -> nodes.Template:
        return cast("nodes.Template", _Counting().visit(super()._parse(source, name, filename)))

    def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
        """Return the operator's result, if it cannot be too large."""
        count_step()
        if operator == "%" and isinstance(left, str):
            _check_format(left)
        elif operator == "**" and isinstance(left, int) and isinstance(right, int):
            _check_bits(left.bit_length() * abs(right))
        elif operator == "*":
            _check_product(left, right)
        return check_size(super().call_binop(context, operator, left, right))

    def call(self, context: Any, function: Any, /, *args: Any, **values: Any) -> Any:
        """Return the function's result, if its arguments do not ask for too much."""
        count_step()
        if function is count_step:
            return None
        if function is check_size:
            return check_size(*args)
        _check_arguments(args, values)
        of = getattr(getattr(function, "__wrapped__", function), "__self__", None)
        name = getattr(function, "__name__", "")
        if name in ("format", "format_map"):
            _check_format(of)
        elif name == "replace":
            _check_replacement(of, args)
        elif name == "join" and isinstance(of, str) and args:
            args = (_collect(args[0], len(of)), *args[1:])
        return check_size(super().call(context, function, *args, **values))


def _check_bits(bits: int) -> None:
    if bits > _MOST_BITS:
        raise TemplateTooLong


def _check_product(left: Any, right: Any) -> None:
    if isinstance(left, int) and isinstance(right, int):
        _check_bits(left.bit_length() + right.bit_length())
        return
    for one, times in ((left, right), (right, left)):
        if isinstance(one, str | list | tuple) and isinstance(times, int) and len(one) * times > MOST_BYTES:
            raise TemplateTooLong


def _collect(values: Any, separator_length: int) -> Any:
    """Return what is to be joined as a list, if its text will not be too long."""
    if isinstance(values, str):
        parts: Any = values
        length = len(values)
    else:
        parts, length = list(values), 0
        length = sum(len(part) if isinstance(part, str) else 1 for part in parts)
    if length + separator_length * len(parts) > MOST_BYTES:
        raise TemplateTooLong
    return parts


def _limit(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
    """Return the filter with a step, and a check of its arguments and its result."""
    passes = bool(getattr(function, "jinja_pass_arg", None))

    @functools.wraps(function)
    def limited(*args: Any, **values: Any) -> Any:
        count_step()
        own = args[1:] if passes else args  # The first is Jinja's own.
        _check_arguments(own[1:], values)
        if name == "format" and own:
            _check_format(own[0])
        elif name == "replace" and own:
            _check_replacement(own[0], own[1:])
        elif name == "join" and own:
            separator = str(own[1]) if len(own) > 1 else str(values.get("d", ""))
            place = 1 if passes else 0
            attribute = len(own) > 2 or "attribute" in values
            collected = list(own[0]) if attribute else _collect(own[0], len(separator))
            args = (*args[:place], collected, *args[place + 1 :])
        return check_size(function(*args, **values))

    return limited


class _Counting(NodeTransformer):
    """Inserts a step into every round of a loop, and a check behind every text that is put together."""

    def visit_For(self, node: nodes.For) -> nodes.For:
        self.generic_visit(node)
        node.body.insert(0, nodes.ExprStmt(_call(_COUNT, [], node), lineno=node.lineno))
        return node

    def visit_Concat(self, node: nodes.Concat) -> nodes.Expr:
        self.generic_visit(node)
        return _call(_CHECK, [node], node)

    def visit_AssignBlock(self, node: nodes.AssignBlock) -> list[nodes.Node]:
        self.generic_visit(node)
        if not isinstance(node.target, nodes.Name):
            return [node]
        value = nodes.Name(node.target.name, "load", lineno=node.lineno, environment=node.environment)
        return [node, nodes.ExprStmt(_call(_CHECK, [value], node), lineno=node.lineno)]


def _call(name: str, args: list[nodes.Expr], node: nodes.Node) -> nodes.Call:
    function = nodes.ImportedName(name, lineno=node.lineno, environment=node.environment)
    return nodes.Call(function, args, [], None, None, lineno=node.lineno, environment=node.environment)
