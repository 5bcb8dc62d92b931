"""Patterns of expressions, by RE2: Python's own can take years on a text, and no limit ends that."""

import functools
from typing import Any

from jinja2 import nodes


@functools.lru_cache(maxsize=100)
def compile_pattern(pattern: str) -> Any:
    """Return the pattern as RE2 has it, which takes linear time for any text.

    Raises:
        ValueError: It is no pattern of RE2.
    """
    import re2

    options = re2.Options()
    options.log_errors = False  # Else it writes to stderr itself.
    try:
        return re2.compile(pattern, options)
    except re2.error as exc:
        why = exc.args[0].decode() if isinstance(exc.args[0], bytes) else exc
        raise ValueError(f"regex_search: {pattern}: {why}; write a pattern of RE2") from exc


def check_patterns(tree: nodes.Template) -> None:
    """Raise ValueError for a pattern that stands in an expression and is none."""
    for node in tree.find_all(nodes.Filter):
        # As its own argument, by name too, or as one of a filter that applies it, such as `map`.
        named = {argument.value for argument in node.args if isinstance(argument, nodes.Const)}
        given = [*node.args, *(keyword.value for keyword in node.kwargs)]
        if node.name == "regex_search" or "regex_search" in named:
            texts = [
                one.value for one in given if isinstance(one, nodes.Const) and isinstance(one.value, str)
            ]
            for text in texts:
                compile_pattern(text)  # The filter's own name is one, too.
