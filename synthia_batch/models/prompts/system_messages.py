"""The library of system messages, and how a job refers to one.

The texts are files in library/; library.toml names the source of each.
"""

import difflib
import re
import tomllib
from dataclasses import dataclass
from importlib import resources
from pathlib import Path

from blake3 import blake3

from synthia_batch.core.errors import UsageError

NO_SYSTEM_MESSAGE = "none"
LITERAL_PREFIX = "text:"

_NAMES_OF_ROWS = ("row", "column")
"""Names in the output for a row's own system message (ROW_SYSTEM) and one from its column (SYSTEM_COLUMN)."""
_SINGLE_WORD = re.compile(r"[A-Za-z0-9_-]+")


@dataclass(frozen=True, slots=True, kw_only=True)
class SystemMessage:
    """A system message. `name` is written to the output; an empty `text` means no system message.

    `source` is the URL of the model card for one from the library, the path for one from a file, and
    empty for literal text.
    """

    name: str
    text: str
    source: str


def select_system_message(spec: str, *, folder: Path | None = None) -> SystemMessage:
    """Return the system message for `NAME`, `@FILE`, `TEXT` or `text:TEXT`.

    A relative FILE is relative to `folder`, or to the working directory. A single word of letters,
    digits, `_` and `-` is always a name, so that a typo is not sent to a model as an instruction. A
    file's message is named by its stem, with the prefix `file-` if the stem is a name in the library,
    `none`, `row` or `column`.
    """
    if spec.startswith("@"):
        return _read_file(spec[1:], folder or Path())
    if spec.startswith(LITERAL_PREFIX):
        return _make_literal(spec.removeprefix(LITERAL_PREFIX))
    if _SINGLE_WORD.fullmatch(spec):
        return load_system_message(spec)
    return _make_literal(spec)


def load_system_message(name: str) -> SystemMessage:
    """Return the library's system message `name`. Raises UsageError if there is none with that name."""
    cards = _load_index()
    if name not in cards:
        raise UsageError(_describe_unknown(name, list(cards)))
    if name == NO_SYSTEM_MESSAGE:
        return SystemMessage(name=name, text="", source="")
    text = _read_data(f"{name}.txt").removesuffix("\n")
    return SystemMessage(name=name, text=text, source=cards[name]["url"])


def _load_index() -> dict[str, dict[str, str]]:
    return tomllib.loads(_read_data("library.toml"))


def _read_data(name: str) -> str:
    return (resources.files(__package__) / "library" / name).read_text(encoding="utf-8")


def _describe_unknown(name: str, known: list[str]) -> str:
    near = difflib.get_close_matches(name.lower(), known, n=2)
    suggestion = f"did you mean {' or '.join(near)}? The" if near else "the"
    return (
        f"there is no system message {name!r}; {suggestion} library has {', '.join(known)}. "
        f"For the word itself use {LITERAL_PREFIX}{name}, for a file @{name}.txt"
    )


def _read_file(name: str, folder: Path) -> SystemMessage:
    path = folder / name
    try:
        # utf-8-sig: editors may add a byte order mark.
        text = path.read_bytes().decode("utf-8-sig").removesuffix("\n").removesuffix("\r")
    except OSError as exc:
        raise UsageError(
            f"the system message file {path} cannot be read: {exc.strerror}; check the path"
        ) from exc
    except UnicodeDecodeError as exc:
        raise UsageError(
            f"the system message file {path} is not UTF-8 (byte {exc.start}): save it as UTF-8"
        ) from exc
    if not text.strip():
        raise UsageError(f"the system message file {path} is empty; for none use {NO_SYSTEM_MESSAGE}")
    return SystemMessage(name=_name_file(path), text=text, source=str(path))


def _name_file(path: Path) -> str:
    """Return the stem of `path`, prefixed if it already names another system message."""
    is_taken = path.stem in _NAMES_OF_ROWS or path.stem in _load_index()
    return f"file-{path.stem}" if is_taken else path.stem


def _make_literal(text: str) -> SystemMessage:
    if not text.strip():
        raise UsageError(f"the system message is empty; for none use {NO_SYSTEM_MESSAGE}")
    try:
        digest = blake3(text.encode("utf-8")).hexdigest()
    except UnicodeEncodeError as exc:
        raise UsageError(
            f"the system message is not UTF-8 (character {exc.start}): put it in a file, @FILE"
        ) from exc
    return SystemMessage(name=f"text-{digest[:8]}", text=text, source="")
