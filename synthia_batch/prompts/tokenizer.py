"""From text to token ids, in the driver, once for every sample.

Uses the `tokenizers` library alone: importing transformers costs 8 s of start-up on two cores,
and what it would do with a fast tokenizer's text is the same.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

from synthia_batch.errors import ModelUnavailable, SampleRefused
from synthia_batch.prompts.formats import Answer, PromptFormat
from synthia_batch.rows import Message


class Tokenizer(Protocol):
    """Turns text into token ids."""

    def encode(self, text: str, add_special_tokens: bool) -> Sequence[int]:
        """Return the ids of `text`, with the model's start token where asked for."""


class ByteTokenizer:
    """UTF-8 bytes as ids, for engines without a model."""

    def encode(self, text: str, add_special_tokens: bool) -> bytes:
        """Return the bytes of `text`; there are no special tokens."""
        return text.encode()


class FastTokenizer:
    """A tokenizer.json, as the model's own tokenizer reads it."""

    def __init__(self, path: Path) -> None:
        """Read `path`.

        Raises:
            ModelUnavailable: It cannot be read, or is not a tokenizer.
        """
        from tokenizers import Tokenizer as Tokenizers

        try:
            self._tokenizer = Tokenizers.from_file(str(path))
        except Exception as exc:  # The library raises bare Exception for every fault of the file.
            raise ModelUnavailable(f"{path}: not a tokenizer: {exc}; fetch the model again") from exc
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()

    def encode(self, text: str, add_special_tokens: bool) -> Sequence[int]:
        """Return the ids of `text`, its start token once even where the text writes it too."""
        ids: list[int] = self._tokenizer.encode(text, add_special_tokens=add_special_tokens).ids
        if not add_special_tokens or len(ids) < 2 or ids[0] != ids[1]:
            return ids
        bare: list[int] = self._tokenizer.encode(text, add_special_tokens=False).ids
        return bare if ids[1:] == bare else ids


class Renderer:
    """Renders conversations to token ids, and reads the answers: a format and a tokenizer."""

    def __init__(self, prompt_format: PromptFormat, tokenizer: Tokenizer) -> None:
        self._format = prompt_format
        self._tokenizer = tokenizer

    def encode(self, text: str) -> Sequence[int]:
        """Return the token ids of `text` as it stands, behind a start token if the format writes none."""
        return self._tokenizer.encode(text, self._format.adds_special_tokens)

    def render(self, messages: Sequence[Message]) -> Sequence[int]:
        """Return the token ids of the whole prompt.

        Raises:
            SampleRefused: The format cannot express the conversation, or it has no tokens.
        """
        ids = self.encode(self._format.write(messages))
        if not ids:
            raise SampleRefused("prompt_empty", "the prompt has no tokens")
        return ids

    def read(self, text: str) -> Answer:
        """Return the answer that the generated `text` is. Not to be read twice."""
        return self._format.read(text)
