"""Text of strangers made fit to be shown: visible where it is not, cut where it is long."""

import re
from dataclasses import dataclass

from markupsafe import escape

_CONTROLS = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\ufffe\uffff\ud800-\udfff]")
_DIRECTIONS = re.compile("[\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069]")


@dataclass(frozen=True, slots=True, kw_only=True)
class Escaped:
    """A text as it is shown. `characters` is how many it has, `kept` how many of them are here."""

    text: str
    characters: int
    kept: int

    @property
    def is_cut(self) -> bool:
        """Whether some of it is missing."""
        return self.kept < self.characters


def escape_text(text: str, most_bytes: int) -> Escaped:
    """Return `text` as it may stand in a page, in at most `most_bytes` of escaped UTF-8, or a few more.

    Controls become pictures of themselves; what turns the direction of writing becomes its number,
    since it would carry on behind the text; what UTF-8 cannot say becomes a question mark.
    """
    kept = _find_fitting(text, most_bytes)
    return Escaped(text=make_visible(text[:kept]), characters=len(text), kept=kept)


def make_visible(text: str) -> str:
    """Return `text` with what cannot be seen, or must not act, replaced by what can be seen."""
    text = _CONTROLS.sub(_picture, text.replace("\r\n", "\n"))
    return _DIRECTIONS.sub(lambda found: f"[U+{ord(found[0]):04X}]", text)


def _picture(found: re.Match[str]) -> str:
    code = ord(found[0])
    if code < 0x20:
        return chr(0x2400 + code)
    return "\u2421" if code == 0x7F else "\ufffd"


def _find_fitting(text: str, most_bytes: int) -> int:
    """Return how many characters of `text` fit."""
    low, high = 0, min(len(text), most_bytes)
    if _measure(text[:high]) <= most_bytes:
        return high
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if _measure(text[:middle]) <= most_bytes else (low, middle)
    return low


def _measure(text: str) -> int:
    return len(str(escape(text)).encode(errors="replace"))
