"""Durations, sizes and text in a form fit for a terminal."""

import difflib
import json
from collections.abc import Callable, Iterable, Sequence
from typing import Any

MESSAGE_LENGTH = 160


def format_seconds(seconds: float) -> str:
    """Return a readable duration: 42 s, 3 min, 2 h 05 min."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02d} min"


def format_bytes(count: int) -> str:
    """Return a readable size, in decimal units: 512 bytes, 1.5 kB, 34 GB."""
    if count < 1000:
        return f"{count} bytes"
    for power, unit in enumerate(("kB", "MB", "GB"), start=1):
        if count < 999.5 * 1000**power:
            return f"{count / 1000**power:.3g} {unit}"
    return f"{count / 1e12:.3g} TB"


def format_count(count: int, noun: str, plural: str = "") -> str:
    """Return a number with its noun: 1 row, 2,000 rows. `plural`: without it, an s is added."""
    return f"{count:,} {noun if count == 1 else plural or noun + 's'}"


def join_first(names: Sequence[str], most: int) -> str:
    """Return the first `most` names, and how many others there are: a, b and 3 more."""
    others = len(names) - most
    return ", ".join(names[:most]) + (f" and {others} more" if others > 0 else "")


def make_printable(text: str, keeps: str = "") -> str:
    """Return `text` with unprintable characters escaped, except those in `keeps`.

    Control characters would change a terminal, and marks of direction the order of what follows.
    """
    if text.isascii() and text.isprintable():
        return text
    return "".join(
        char if char in keeps or char.isprintable() else char.encode("unicode_escape").decode()
        for char in text
    )


def encode_json(value: Any, indent: int | None = None) -> str:
    """Return `value` as JSON in which unprintable characters are escaped, and others are not."""
    text = json.dumps(value, indent=indent, ensure_ascii=False)
    if text.isascii():
        return text.replace("\x7f", "\\u007f")
    return "".join(
        char
        if char == "\n" or char.isprintable()
        else f"\\u{ord(char):04x}"
        if ord(char) < 0x10000
        else json.dumps(char)[1:-1]
        for char in text
    )


def clip(text: str, length: int) -> str:
    """Return `text`, of which more than `length` characters are cut off."""
    return text if len(text) <= length else f"{text[: length - 3]}..."


def suggest_name(
    name: str, known: Iterable[str], otherwise: str = "", spell: Callable[[str], str] = str
) -> str:
    """Return a question for the one of `known` that is closest to `name`, `otherwise` if none is close."""
    near = difflib.get_close_matches(name, list(known), n=1)
    return f"did you mean {spell(near[0])}?" if near else otherwise


def shorten(text: str, length: int = MESSAGE_LENGTH) -> str:
    """Return `text` as one printable line of at most `length` characters."""
    line = " ".join(text.split())
    return clip(make_printable(line[: 2 * length]), length)
