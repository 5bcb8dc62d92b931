"""Escapes and shortens untrusted text for display."""

import re
from dataclasses import dataclass

from markupsafe import escape

_CONTROLS = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\ufffe\uffff\ud800-\udfff]")
_DIRECTIONS = re.compile("[\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069]")


@dataclass(frozen=True, slots=True, kw_only=True)
class Escaped:
    """An escaped text: the first `kept` of its `characters`."""

    text: str
    characters: int
    kept: int

    @property
    def is_cut(self) -> bool:
        return self.kept < self.characters


def escape_text(text: str, max_bytes: int) -> Escaped:
    """Return `text` safe for a page, in about `max_bytes` of HTML-escaped UTF-8.

    Control characters become control pictures. Bidirectional marks become their code points, since they
    would affect the text that follows. Surrogates become replacement characters.
    """
    kept = _find_fitting(text, max_bytes)
    return Escaped(text=make_visible(text[:kept]), characters=len(text), kept=kept)


def make_visible(text: str) -> str:
    """Return `text` with control characters and bidirectional marks replaced by visible characters."""
    text = _CONTROLS.sub(_picture, text.replace("\r\n", "\n"))
    return _DIRECTIONS.sub(lambda found: f"[U+{ord(found[0]):04X}]", text)


def _picture(found: re.Match[str]) -> str:
    code = ord(found[0])
    if code < 0x20:
        return chr(0x2400 + code)
    return "\u2421" if code == 0x7F else "\ufffd"


def _find_fitting(text: str, max_bytes: int) -> int:
    """Return how many characters of `text` fit into `max_bytes`."""
    low, high = 0, min(len(text), max_bytes)
    if _measure(text[:high]) <= max_bytes:
        return high
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if _measure(text[:middle]) <= max_bytes else (low, middle)
    return low


def _measure(text: str) -> int:
    return len(str(escape(text)).encode(errors="replace"))
