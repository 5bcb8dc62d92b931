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
        first = node.args[0] if node.name == "regex_search" and node.args else None
        if isinstance(first, nodes.Const) and isinstance(first.value, str):
            compile_pattern(first.value)
