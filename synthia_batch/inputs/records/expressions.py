"""Expressions about a sample, in Jinja's language and sandbox: `judge.json.score >= 7 and topic == 'x'`.

Names are `id`, the columns that the run kept, and the name of its job with any of its other columns behind
it, as behind a kept column that is the sample of an earlier run; `NAME.json` is the response parsed. A name
that is no identifier is written `row["NAME"]`. A value that is missing or null is nothing: comparing with it
is false, and what is computed or read from it is nothing, too.
"""

import difflib
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import Any

import jinja2
from jinja2 import nodes
from jinja2.sandbox import ImmutableSandboxedEnvironment

from synthia_batch.core.errors import UsageError
from synthia_batch.core.sandbox import make_sandbox, refuse_chance
from synthia_batch.core.template_limits import LimitedEnvironment, evaluate_limited
from synthia_batch.inputs.records.columns import spell_name
from synthia_batch.inputs.records.faults import RowFault
from synthia_batch.inputs.records.patterns import check_patterns, compile_pattern
from synthia_batch.inputs.records.strict_json import parse_json

JSON, ID, ROW = "json", "id", "row"
_VALUE = "value_of_expression"


class ExpressionFailed(Exception):
    """An expression has no value for a sample."""


class Nothing(jinja2.ChainableUndefined):
    """A value that is missing or null."""

    __slots__ = ()

    def _is_false(self, other: object) -> Any:
        return False

    def _stay(self, *others: object) -> Any:
        return self

    # Jinja's own raise an error.
    __lt__ = __le__ = __gt__ = __ge__ = __eq__ = __ne__ = _is_false
    __add__ = __radd__ = __sub__ = __rsub__ = __mul__ = __rmul__ = __truediv__ = __rtruediv__ = _stay
    __floordiv__ = __rfloordiv__ = __mod__ = __rmod__ = __pow__ = __rpow__ = __neg__ = __pos__ = _stay
    __hash__ = object.__hash__


NOTHING = Nothing()
"""The value that is none."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SampleNames:
    """The names in the expressions of a run: of its `job`, and of the columns that it kept.

    `runs` has the columns behind the name of each run: of the job its own, and of a kept column that is a
    sample of an earlier run its fields. `plain` are the other kept columns.
    """

    job: str
    runs: Mapping[str, Sequence[str]]
    plain: Sequence[str]

    @property
    def top(self) -> tuple[str, ...]:
        """Every name that an expression can begin with."""
        return tuple(dict.fromkeys((ID, *self.plain, *self.runs)))

    def is_of(self, run: str, column: str) -> bool:
        """Return whether the column, by its path in a part, is one of `run`."""
        return column in self.runs[run] if run == self.job else column.startswith(f"{run}.")

    def locate(self, run: str, column: str) -> str:
        """Return the path of the column of `run` in a part."""
        column = "response" if column == JSON else column
        return column if run == self.job else f"{run}.{column}"


class _Sample:
    """A sample of a run. Not a dict, whose methods would hide columns of their names."""

    def __init__(self, values: Mapping[str, Any]) -> None:
        self._values = values
        self._json: Any = None

    def __getitem__(self, name: str) -> Any:
        if name != JSON:
            return self._values.get(name)
        if self._json is None:
            self._json = parse(self._values["response"])
        return self._json


def open_kept(value: Any) -> Any:
    """Return the value of a kept column for an expression: of an earlier run's sample, its columns."""
    return _Sample(value) if isinstance(value, dict) and {"response", "messages"} <= value.keys() else value


class Expression:
    """The compiled expression of `key`, such as `where`. `columns` are those of the run that it reads."""

    def __init__(self, key: str, text: str, names: SampleNames) -> None:
        """Compile `text`. Raises UsageError if it is no expression, or names what a sample does not have."""
        self.text = text
        environment = _make_environment()
        try:
            environment.compile_expression(text)  # Nothing but an expression.
            tree = environment.parse(f"{{{{ ({text}\n) }}}}")
            refuse_chance(tree)
            _refuse_null(tree)
            check_patterns(tree)
            template = environment.from_string(f"{{% set {_VALUE} = ({text}\n) %}}")
        except jinja2.TemplateError as exc:
            raise UsageError(f"{key}: {text}: {exc.message}; write an expression of Jinja") from exc
        except (RecursionError, SyntaxError, ValueError, OverflowError) as exc:
            why = "it is too long" if isinstance(exc, RecursionError) else exc
            raise UsageError(f"{key}: {text[:200]}: no expression that can be used: {why}") from exc
        try:
            self.columns = tuple(sorted(_list_columns(tree, names)))
        except UsageError as exc:
            raise UsageError(f"{key}: {text}: {exc}") from exc
        self._job = names.job
        self._plain = [name for name in (ID, *names.plain) if name in self.columns]
        self._runs = [run for run in names.runs if any(names.is_of(run, column) for column in self.columns)]
        self.kept = tuple(name for name in (*self._plain, *self._runs) if name not in (ID, names.job))
        """The kept columns that it reads."""
        # One context for all samples: making one takes as long as the expression.
        self._row: dict[str, Any] = {}
        self._names: dict[str, Any] = {**environment.globals, ROW: self._row}
        self._context = template.new_context(self._names, shared=True)
        self._run = template.root_render_func

    def evaluate(self, values: Mapping[str, Any]) -> Any:
        """Return the value for a sample with these `columns`. Raises ExpressionFailed."""
        row = self._row
        for name in self._plain:
            row[name] = NOTHING if (value := values[name]) is None else value
        for name in self._runs:
            row[name] = _Sample(values if name == self._job else values[name] or {})
        self._names.update(row)
        self._names[ROW] = row  # A column of that name is row["row"].
        try:
            return evaluate_limited(self._evaluate)
        except Exception as exc:  # An expression can raise anything, such as ZeroDivisionError.
            raise ExpressionFailed(f"{self.text}: {exc or type(exc).__name__}") from exc

    def _evaluate(self) -> Any:
        for _ in self._run(self._context):
            pass
        value = self._context.vars.pop(_VALUE)
        # What filters such as `map` give is lazy: always true, and equal to nothing but itself.
        return list(value) if isinstance(value, Iterator) else value


def _refuse_null(tree: nodes.Template) -> None:
    """Raise TemplateSyntaxError where null is asked for: a value that is null is nothing."""
    asked = [node.lineno for node in tree.find_all(nodes.Test) if node.name == "none"]
    for node in tree.find_all(nodes.Compare):
        values = (node.expr, *(operand.expr for operand in node.ops))
        asked += [node.lineno for one in values if isinstance(one, nodes.Const) and one.value is None]
    if asked:
        raise jinja2.TemplateSyntaxError(
            "null is nothing, which no comparison finds: ask with `is defined` or `is not defined`", asked[0]
        )


class _Environment(LimitedEnvironment):
    """A sandbox in which null, like a missing value, is nothing."""

    def getattr(self, obj: Any, attribute: str) -> Any:
        value = super().getattr(obj, attribute)
        return NOTHING if value is None else value

    def getitem(self, obj: Any, argument: Any) -> Any:
        value = super().getitem(obj, argument)
        return NOTHING if value is None else value


def _make_environment() -> ImmutableSandboxedEnvironment:
    environment = make_sandbox(_Environment, undefined=Nothing)
    environment.filters.update(FILTERS)
    return environment


def _list_columns(tree: nodes.Template, names: SampleNames) -> set[str]:
    """Return the run's columns that the expression reads."""
    columns, behind = set(), set()
    looked_up: list[Any] = list(tree.find_all((nodes.Getattr, nodes.Getitem)))
    for node in looked_up:
        run = _find_top(node.node)
        if run is not None and run in names.runs:
            name, own = _find_key(node), [*names.runs[run], JSON]
            if name not in own:
                raise UsageError(f"{run} has no {name}{suggest(str(name), own)}")
            columns.add(names.locate(run, str(name)))
            behind.add(id(node.node))
    rows = {id(node.node) for node in looked_up if _is_row(node.node) and _find_top(node) is not None}
    for found in [*looked_up, *tree.find_all(nodes.Name)]:
        top = _find_top(found)
        if _is_row(found) and id(found) not in rows:
            raise UsageError(f'{ROW} can only be used as {ROW}["NAME"]')
        if top is None or _is_row(found):
            continue
        if isinstance(found, nodes.Name) and top == "self":
            raise UsageError(f'self means the template here: write {ROW}["self"]')
        if top not in names.top:
            raise UsageError(f"there is no {top}{suggest(top, names.top)}")
        if top in names.runs and id(found) not in behind:
            where = f"{spell_name(top)}.COLUMN, one of {_join(names.runs[top])}"
            raise UsageError(f"{top} is no value: write {where}")
        if top not in names.runs:
            columns.add(top)
    if not columns:
        raise UsageError(f"it reads no column; there are {_join(names.top)}")
    return columns


def _is_row(node: Any) -> bool:
    return isinstance(node, nodes.Name) and node.name == ROW


def _find_key(node: Any) -> Any:
    """Return what is looked up: the name behind a dot, or the constant in brackets."""
    return node.attr if isinstance(node, nodes.Getattr) else getattr(node.arg, "value", None)


def _find_top(node: Any) -> str | None:
    """Return the name that `node` is: itself, or as row["NAME"]; None for anything else."""
    if isinstance(node, nodes.Name):
        return node.name
    is_item = isinstance(node, nodes.Getitem) and _is_row(node.node)
    return _find_key(node) if is_item and isinstance(_find_key(node), str) else None


def suggest(name: str, known: Sequence[str]) -> str:
    """Return what an unknown name may have meant, to stand behind it."""
    near = difflib.get_close_matches(name, known, n=1)
    return f"; did you mean {spell_name(near[0])}?" if near else f"; there are {_join(known)}"


def _join(names: Sequence[str]) -> str:
    return ", ".join(map(spell_name, names))


def read_number(value: Any) -> float:
    """Return the finite number that a value is, NaN for any other."""
    try:
        number = float(value) if isinstance(value, int | float | Decimal) else math.nan
    except OverflowError:
        return math.nan
    return number if math.isfinite(number) else math.nan


def _search(text: Any, pattern: str) -> Any:
    """Return what the pattern finds in a text: its first group if it has any."""
    found = compile_pattern(pattern).search(text) if isinstance(text, str) else None
    return NOTHING if found is None or (value := found[min(1, found.re.groups)]) is None else value


def _read_number(text: Any) -> Any:
    """Return the number that a text is, with or without commas between thousands."""
    try:
        return float(text.replace(",", "") if isinstance(text, str) else text)
    except (TypeError, ValueError):
        return NOTHING


def parse(text: Any) -> Any:
    """Return the value of a text of JSON, NOTHING of any other."""
    try:
        return parse_json(text) if isinstance(text, str) else NOTHING
    except RowFault:
        return NOTHING


def _split(text: Any) -> list[str]:
    return text.split() if isinstance(text, str) else []


FILTERS: Mapping[str, Callable[..., Any]] = {
    "regex_search": _search,
    "number": _read_number,
    "json": parse,
    "words": _split,
}
"""Filters of expressions beside Jinja's own."""
