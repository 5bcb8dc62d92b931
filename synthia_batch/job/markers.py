"""Markers on the fields of the job's schema: command-line flag, identity class, and how a path is anchored.

They are metadata of `Annotated`, which Pydantic ignores; `job.keys` finds them by walking the schema.
"""

from collections.abc import Callable
from dataclasses import KW_ONLY, dataclass
from pathlib import Path
from typing import Any, Literal

Panel = Literal["Job", "Model", "Prompts and samples", "Input", "Sampling", "Answers", "Engines", "The night"]
"""The groups of flags in `--help`, in their order."""


@dataclass(frozen=True, slots=True)
class Flag:
    """The command-line flag of a key.

    `name` is the flag without dashes; empty, it is the key's own. `takes` is the type of a value: `list`
    for a repeatable text. `parts` says how that text is split: `names` at commas, `pairs` as NAME=PATH.
    Flags of a panel are listed by `order`, then as in the schema.
    """

    panel: Panel
    help: str
    _: KW_ONLY
    name: str = ""
    short: str | None = None
    metavar: str | None = None
    takes: Any = str
    parts: Literal["names", "pairs"] | None = None
    order: int = 0


@dataclass(frozen=True, slots=True)
class IdentityClass:
    """Whether a key must be equal for a run to be resumed, and why.

    `kind`: `always`, `strict` (only in strict determinism) or `never`. `field` is the dotted name in the
    identity, empty for `never`.
    """

    kind: Literal["always", "strict", "never"]
    field: str
    why: str


def always(field: str, why: str) -> IdentityClass:
    """Return the class of a key that is part of every identity, as `field`."""
    return IdentityClass("always", field, why)


def strict(field: str, why: str) -> IdentityClass:
    """Return the class of a key that is part of the identity in strict determinism only."""
    return IdentityClass("strict", field, why)


def never(why: str) -> IdentityClass:
    """Return the class of a key that may change between attempts."""
    return IdentityClass("never", "", why)


@dataclass(frozen=True, slots=True)
class Anchored:
    """Marks a key whose text, or each of whose texts, names something on this machine.

    `anchor(text, folder)` returns the text with a relative path joined to `folder`.
    """

    anchor: Callable[[str, Path], str]


@dataclass(frozen=True, slots=True)
class Outward:
    """Marks a key that sends data or secrets somewhere, writes outside of the run, or loads code.

    Of a job that was saved with its run it counts only if the user trusts that run.
    """
