"""The Jinja sandbox of every template: the same values give the same text in every process."""

import json
import re
from typing import Any

import jinja2
from jinja2 import nodes
from jinja2.sandbox import ImmutableSandboxedEnvironment

from synthia_batch.core.template_limits import LimitedEnvironment

CHANCE_FILTERS = frozenset({"random"})
CHANCE_GLOBALS = frozenset({"lipsum"})
_ADDRESS = re.compile(r"\bat (0x[0-9a-f]{6,})", re.IGNORECASE)
"""As Python writes an object that has no text of its own: `<generator object do_map at 0x7f3c2a1b4d60>`."""


def make_sandbox(
    kind: type[LimitedEnvironment] = LimitedEnvironment, **options: Any
) -> ImmutableSandboxedEnvironment:
    """Return an environment with `options` of Jinja's, in which nothing is left to chance."""
    environment = kind(trim_blocks=True, lstrip_blocks=True, **options)
    for name in CHANCE_FILTERS:
        del environment.filters[name]
    for name in CHANCE_GLOBALS:
        del environment.globals[name]
    return environment


def refuse_chance(tree: nodes.Template) -> None:
    """Raise TemplateSyntaxError if the template draws lots anywhere: a call alone would fail at its turn."""
    used = [(node.name, node.lineno) for node in tree.find_all(nodes.Filter) if node.name in CHANCE_FILTERS]
    used += [(node.name, node.lineno) for node in tree.find_all(nodes.Name) if node.name in CHANCE_GLOBALS]
    for name, line in used:
        raise jinja2.TemplateSyntaxError(f"{name} gives another text each time", line)


def refuse_addresses(text: str, *sources: Any) -> str:
    """Return `text`, rendered from `sources`, if it has no address of an object in memory.

    Raises:
        TemplateRuntimeError: It has one that is in none of the sources: an object without a text of its
            own was written, such as the result of a filter that no `list` or `join` follows.
    """
    addresses = {found[1].lower() for found in _ADDRESS.finditer(text)}
    if addresses:
        known = json.dumps(sources, ensure_ascii=False, default=str).lower()
        if any(address not in known for address in addresses):
            raise jinja2.TemplateRuntimeError(
                "an object without a text of its own would be rendered, by its address in memory"
            )
    return text
