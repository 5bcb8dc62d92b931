"""Render conversations to token ids, in the driver, once per sample.

Uses only the `tokenizers` library: importing transformers takes 8 s on two cores. The result is the
same with one exception: the text of a special token in a message (`</s>`, `<|im_end|>`) stays text
and never becomes the token, so a row cannot end its own turn or start one of the model's.
"""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from synthia_batch.core.errors import ModelUnavailable, SampleRefused
from synthia_batch.core.types import Message
from synthia_batch.job.resolved import PromptSpec
from synthia_batch.models.prompts.formats import (
    NO_ARGUMENTS,
    Arguments,
    ChatFormat,
    ParsedAnswer,
    PlainChatFormat,
    PromptFormat,
    SynthiaCardFormat,
    SynthiaFormat,
    Tools,
)

if TYPE_CHECKING:
    from tokenizers import Tokenizer as Tokenizers

_MARKS = tuple(chr(code) for code in range(0xE0F0, 0xE100))
"""Private-use characters: one that a prompt lacks breaks up the special tokens written in its messages."""


class Tokenizer(Protocol):
    """Converts between text and token ids."""

    @property
    def special_texts(self) -> tuple[str, ...]:
        """The texts of the special tokens."""

    def encode(self, text: str, *, adds_start: bool, reads_special: bool) -> Sequence[int]:
        """Return the ids of `text`.

        `adds_start` adds the model's start token, `reads_special` recognizes special tokens in `text`.
        """

    def encode_around(self, text: str, mark: str) -> Sequence[int]:
        """Return the ids of `text`, in which `mark` breaks up what only looks like a special token."""

    def decode(self, ids: Sequence[int]) -> str:
        """Return the text of `ids`, including special tokens."""

    def count_special(self, ids: Sequence[int]) -> int:
        """Return how many of `ids` are special tokens."""


class ByteTokenizer:
    """UTF-8 bytes as ids, for engines without a model."""

    special_texts: tuple[str, ...] = ()

    def encode(self, text: str, *, adds_start: bool, reads_special: bool) -> bytes:
        """Return the bytes of `text`."""
        return text.encode()

    def encode_around(self, text: str, mark: str) -> bytes:
        """Return the bytes of `text` without `mark`."""
        return text.replace(mark, "").encode()

    def decode(self, ids: Sequence[int]) -> str:
        """Return the text of these bytes."""
        return bytes(ids).decode(errors="replace")

    def count_special(self, ids: Sequence[int]) -> int:
        """Return 0: there are no special tokens."""
        return 0


@dataclass(frozen=True, slots=True, kw_only=True)
class ShownPrompt:
    """A prompt decoded from its token ids. `lookalikes` counts texts that only look like special tokens."""

    text: str
    lookalikes: int


@dataclass(frozen=True, slots=True)
class _Special:
    """A special token, and whether it absorbs whitespace on its left and right."""

    id: int
    strips_left: bool
    strips_right: bool


class FastTokenizer:
    """The tokenizer in a tokenizer.json."""

    def __init__(self, path: Path) -> None:
        """Load `path`."""
        self._path = path
        self._tokenizer = self._open()
        added = self._tokenizer.get_added_tokens_decoder().items()
        self._specials = {
            token.content: _Special(number, token.lstrip, token.rstrip)
            for number, token in added
            if token.special and token.content
        }

    @property
    def special_texts(self) -> tuple[str, ...]:
        """The texts of the special tokens, longest first."""
        return tuple(sorted(self._specials, key=len, reverse=True))

    def encode(self, text: str, *, adds_start: bool, reads_special: bool) -> Sequence[int]:
        """Return the ids of `text`; see `Tokenizer`."""
        tokenizer = self._tokenizer if reads_special else self._literal
        ids: list[int] = tokenizer.encode(text, add_special_tokens=adds_start).ids
        return ids

    def encode_around(self, text: str, mark: str) -> Sequence[int]:
        """Return the ids of `text`; see `Tokenizer`.

        Text between special tokens is encoded separately, as the library does.
        """
        ids: list[int] = []
        strips = False
        pieces = re.split("(" + "|".join(map(re.escape, self.special_texts)) + ")", text)
        for index, piece in enumerate(pieces):
            if index % 2:
                special = self._specials[piece]
                ids.append(special.id)
                strips = special.strips_right
                continue
            follower = self._specials[pieces[index + 1]] if index + 1 < len(pieces) else None
            plain = piece.lstrip() if strips else piece
            plain = plain.rstrip() if follower and follower.strips_left else plain
            if plain:
                ids += self.encode(plain.replace(mark, ""), adds_start=False, reads_special=False)
        return ids

    def decode(self, ids: Sequence[int]) -> str:
        """Return the text of `ids`; see `Tokenizer`."""
        text: str = self._tokenizer.decode(list(ids), skip_special_tokens=False)
        return text

    def count_special(self, ids: Sequence[int]) -> int:
        """Return how many of `ids` are special tokens."""
        numbers = {special.id for special in self._specials.values()}
        return sum(number in numbers for number in ids)

    @cached_property
    def _literal(self) -> "Tokenizers":
        """A tokenizer that does not recognize special tokens in text."""
        tokenizer = self._open()
        tokenizer.encode_special_tokens = True
        return tokenizer

    def _open(self) -> "Tokenizers":
        from tokenizers import Tokenizer as Tokenizers

        try:
            tokenizer = Tokenizers.from_file(str(self._path))
        except Exception as exc:  # The library raises a bare Exception for any fault in the file.
            raise ModelUnavailable(f"{self._path}: not a tokenizer: {exc}; download the model again") from exc
        tokenizer.no_truncation()
        tokenizer.no_padding()
        return tokenizer


class Renderer:
    """Renders conversations to token ids, and parses the answers: a format and a tokenizer."""

    def __init__(self, prompt_format: PromptFormat, tokenizer: Tokenizer) -> None:
        self._format = prompt_format
        self._tokenizer = tokenizer
        # A mark cannot break up a token of one character; no template writes such a token.
        texts = [text for text in tokenizer.special_texts if len(text) > 1]
        can_clash = bool(texts) and prompt_format.writes_special_tokens
        self._special = re.compile("|".join(map(re.escape, texts))) if can_clash else None

    @property
    def thinks(self) -> bool:
        """Whether `read` finds reasoning in an answer."""
        return self._format.thinks

    @property
    def stop(self) -> tuple[str, ...]:
        """Strings that end every answer in this format."""
        return self._format.stop

    def encode(self, text: str) -> Sequence[int]:
        """Return the token ids of `text`, after a start token if the format does not write one."""
        return self._tokenizer.encode(
            text,
            adds_start=self._format.adds_special_tokens,
            reads_special=self._format.writes_special_tokens,
        )

    def render(
        self, messages: Sequence[Message], tools: Tools = (), kwargs: Arguments = NO_ARGUMENTS
    ) -> Sequence[int]:
        """Return the token ids of the whole prompt, including `tools`; `kwargs` are the row's.

        Raises:
            SampleRefused: The format cannot express the conversation, or it has no tokens.
        """
        special = self._special
        texts = [message.content for message in messages]
        others = [*tools, *(message.extra for message in messages), dict(kwargs)]
        texts += [json.dumps(other, ensure_ascii=False) for other in others if other]
        if special is not None and any(special.search(text) for text in texts):
            ids = self._render_around(messages, tools, kwargs, special)
        else:
            ids = self.encode(self._format.write(messages, tools, kwargs))
        if not ids:
            raise SampleRefused("prompt_empty", "the prompt has no tokens")
        return ids

    def show(self, ids: Sequence[int]) -> ShownPrompt:
        """Return the text of the rendered prompt `ids`."""
        text = self._tokenizer.decode(ids)
        specials = "|".join(map(re.escape, self._tokenizer.special_texts))
        found = len(re.findall(specials, text)) if specials else 0
        return ShownPrompt(text=text, lookalikes=max(0, found - self._tokenizer.count_special(ids)))

    def read(self, text: str, kwargs: Arguments = NO_ARGUMENTS) -> ParsedAnswer:
        """Return the answer in the generated `text` of a prompt with `kwargs`. Never parse one twice."""
        return self._format.read(text, kwargs)

    def _render_around(
        self, messages: Sequence[Message], tools: Tools, kwargs: Arguments, special: re.Pattern[str]
    ) -> Sequence[int]:
        """Render messages that contain the texts of special tokens, each broken up by a mark."""
        extras = [message.extra for message in messages]
        whole = "".join(message.content for message in messages)
        whole += json.dumps([*tools, *extras, dict(kwargs)], ensure_ascii=False)
        mark = next((mark for mark in _MARKS if mark not in whole), None)
        if mark is None:
            reason = "it writes out special tokens, and all the characters that could keep them apart"
            raise SampleRefused("prompt_not_expressible", reason)
        hidden = [
            Message(
                message.role,
                _hide(special, message.content, mark),
                _hide_within(special, message.extra, mark),
            )
            for message in messages
        ]
        hidden_tools = [_hide_within(special, tool, mark) for tool in tools]
        text = self._format.write(hidden, hidden_tools, _hide_within(special, kwargs, mark))
        return self._tokenizer.encode_around(text, mark)


def open_renderer(spec: PromptSpec) -> Renderer:
    """Return the renderer for the job's conversations."""
    tokenizer = ByteTokenizer() if spec.tokenizer is None else FastTokenizer(spec.tokenizer)
    return Renderer(open_format(spec), tokenizer)


def open_format(spec: PromptSpec) -> PromptFormat:
    """Return the job's prompt format."""
    if spec.format == "synthia":
        return SynthiaFormat()
    if spec.format == "synthia-card":
        return SynthiaCardFormat()
    if spec.template is None:
        return PlainChatFormat(spec.kwargs)
    return ChatFormat(spec.template, spec.special_tokens, kwargs=spec.kwargs, day=spec.day)


def find_template_day(spec: PromptSpec) -> str | None:
    """Return the day that the job's chat template gets, as YYYY-MM-DD; None if it asks for none."""
    prompt_format = open_format(spec)
    asks = isinstance(prompt_format, ChatFormat) and prompt_format.asks_for_day
    return spec.day if asks else None


def _hide_within(special: re.Pattern[str], value: Any, mark: str) -> Any:
    """Return the JSON `value` with all special tokens in its texts broken up."""
    if isinstance(value, str):
        return _hide(special, value, mark)
    if isinstance(value, Mapping):
        return {_hide(special, key, mark): _hide_within(special, inner, mark) for key, inner in value.items()}
    if isinstance(value, list):
        return [_hide_within(special, inner, mark) for inner in value]
    return value


def _hide(special: re.Pattern[str], text: str, mark: str) -> str:
    """Return `text` with `mark` after the first character of every special token's text."""
    # Repeatedly: breaking up one token may leave the text of another.
    while special.search(text):
        text = special.sub(lambda found: found[0][0] + mark + found[0][1:], text)
    return text
