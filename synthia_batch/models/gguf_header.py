"""Metadata from the header of a GGUF file, without reading its tensors: milliseconds for 70 GB.

Source: "GGUF" in ggml's docs/gguf.md, versions 2 and 3, little-endian.
"""

import math
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from synthia_batch.core.errors import ModelUnavailable

_MAGIC = b"GGUF"
_NUMBERS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
"""The struct format of each numeric value type, by its number."""
_STRING, _ARRAY = 8, 9
_DEEPEST_ARRAY = 8
_LONGEST_STRING = 2**24
"""In bytes, to detect damage: no name, template or token comes near it."""
_KEPT = ("general.", "tokenizer.chat_template", "split.")
BFLOAT16_BYTES = 2


@dataclass(frozen=True, slots=True, kw_only=True)
class GgufHeader:
    """`values` are metadata by key, `parameters` is the number of weights.

    `least_bytes` is the offset of the last tensor: a shorter file is incomplete.
    """

    values: dict[str, Any]
    parameters: int
    least_bytes: int

    @property
    def chat_template(self) -> str | None:
        """The chat template in the file, if any."""
        template = self.values.get("tokenizer.chat_template")
        return template if isinstance(template, str) else None

    @property
    def parts(self) -> int:
        """The number of files that llama.cpp's gguf-split has split the model into; 1 if it has not."""
        count = self.values.get("split.count", 1)
        return count if isinstance(count, int) and count > 1 else 1

    @property
    def dequantized_bytes(self) -> int:
        """The size of the weights in bfloat16."""
        return self.parameters * BFLOAT16_BYTES


def read_gguf_header(path: Path) -> GgufHeader:
    """Return the header of the GGUF file `path`.

    Raises:
        ModelUnavailable: It cannot be read, or is not a complete GGUF file.
    """
    try:
        with path.open("rb") as file:
            header = _Reader(file).read()
            size = file.seek(0, 2)
    except OSError as exc:
        raise ModelUnavailable(f"{path}: cannot be read: {exc.strerror}; check path and permissions") from exc
    except (ValueError, struct.error, UnicodeDecodeError, OverflowError) as exc:
        raise ModelUnavailable(f"{path}: not a complete GGUF file: {exc}; download it again") from exc
    if size <= header.least_bytes:
        raise ModelUnavailable(
            f"{path}: not a complete GGUF file: its last tensor starts at byte {header.least_bytes}, but "
            f"it has {size} bytes; download it again, with every part if it is split"
        )
    return header


class _Reader:
    def __init__(self, file: BinaryIO) -> None:
        self._file = file

    def read(self) -> GgufHeader:
        if self._file.read(4) != _MAGIC:
            raise ValueError("it does not start with GGUF")
        version = self._number("I")
        if version not in (2, 3):
            raise ValueError(f"expected version 2 or 3, got {version}")
        tensors, entries = self._number("Q"), self._number("Q")
        values = {}
        for _ in range(entries):
            key, kind = self._string(), self._number("I")
            value = self._value(kind, keep=key.startswith(_KEPT))
            if value is not None:
                values[key] = value
        parameters = last_offset = 0
        for _ in range(tensors):
            self._string()
            parameters += math.prod([self._number("Q") for _ in range(self._number("I"))])
            self._skip(4)  # the tensor's type
            last_offset = max(last_offset, self._number("Q"))  # in bytes from the end of the header
        return GgufHeader(values=values, parameters=parameters, least_bytes=self._file.tell() + last_offset)

    def _value(self, kind: int, *, keep: bool) -> Any:
        """Return a value, None for one that is skipped."""
        if kind == _ARRAY:
            self._skip_array()
            return None
        if kind == _STRING:
            text = self._string()
            return text if keep else None
        return self._number(_find_format(kind))

    def _skip_array(self, depth: int = 1) -> None:
        if depth > _DEEPEST_ARRAY:
            raise ValueError(f"arrays in arrays, more than {_DEEPEST_ARRAY} deep")
        kind, length = self._number("I"), self._number("Q")
        if kind not in (_STRING, _ARRAY):
            self._skip(length * struct.calcsize("<" + _find_format(kind)))
            return
        for _ in range(length):
            if kind == _STRING:
                self._skip(self._number("Q"))
            else:
                self._skip_array(depth + 1)

    def _string(self) -> str:
        length = self._number("Q")
        if length > _LONGEST_STRING:
            raise ValueError(f"a string of {length} bytes")
        return self._exactly(length).decode()

    def _number(self, form: str) -> Any:
        form = "<" + form
        return struct.unpack(form, self._exactly(struct.calcsize(form)))[0]

    def _exactly(self, count: int) -> bytes:
        data = self._file.read(count)
        if len(data) < count:
            raise ValueError("it ends within its header")
        return data

    def _skip(self, count: int) -> None:
        self._file.seek(count, 1)


def _find_format(kind: int) -> str:
    if kind not in _NUMBERS:
        raise ValueError(f"unknown value type {kind}")
    return _NUMBERS[kind]
