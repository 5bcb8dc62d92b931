"""`accept` from Python: a function, for which its source stands in identity and in job.json."""

import inspect
import textwrap
from collections.abc import Callable, Mapping
from typing import Any

from synthia_batch.core.errors import UsageError

_ADVICE = "give `accept` a function that is made with def in a file or a notebook's cell"


class AcceptFunction(str):
    """The source of a function that says whether an answer is accepted, as text, and the function itself.

    It gets one mapping: `id`, the kept columns, and `response`, `reasoning`, `finish_reason`,
    `completion_tokens` and `json` of the answer. What it returns counts as true or false.
    """

    __slots__ = ("function",)
    function: Callable[[Mapping[str, Any]], object]

    def __new__(cls, function: Callable[[Mapping[str, Any]], object]) -> "AcceptFunction":
        """Read the source of `function`. Raises UsageError if it has no source that stands for it."""
        if not inspect.isfunction(function) or function.__name__ == "<lambda>":
            raise UsageError(f"accept: {function!r} has no source of its own; {_ADVICE}")
        if function.__closure__:
            names = ", ".join(function.__code__.co_freevars)
            raise UsageError(
                f"accept: {function.__name__} depends on {names} of the function around it, which its source "
                "does not show; keep such values as columns of the rows (keep_columns)"
            )
        try:
            source = inspect.getsource(function)
        except (OSError, TypeError) as exc:
            raise UsageError(f"accept: the source of {function.__name__} cannot be read; {_ADVICE}") from exc
        made = super().__new__(cls, textwrap.dedent(source).rstrip())
        made.function = function
        return made


def keep_function(value: Any, validate: Callable[[Any], Any]) -> Any:
    """Return a function as an AcceptFunction, and anything else as `validate` does."""
    if isinstance(value, AcceptFunction):
        return value
    return AcceptFunction(value) if callable(value) else validate(value)
