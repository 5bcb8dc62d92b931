"""The texts of a benchmark, and which of them another text shares words with.

Two texts do if `ngram` words in a row are equal; one of fewer words must be equal to the other as a whole.
Words are the runs of letters and digits, after NFKC and in lower case. They are compared by hashes of 64
bits, so that the memory is 16 bytes for each different run of words of the benchmark, and about three times
that while it is read.
"""

import re
import unicodedata
from array import array
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache, cached_property, lru_cache
from typing import Any, NamedTuple

import numpy as np
from blake3 import blake3
from jinja2 import Undefined
from numpy.typing import NDArray

from synthia_batch.core.digest import open_digest_cache
from synthia_batch.core.errors import InputRefused, UsageError
from synthia_batch.inputs import digest_contents, digest_files, open_file, resolve_inputs
from synthia_batch.inputs.base import DETECT_ROWS
from synthia_batch.inputs.records.expressions import ExpressionFailed, suggest
from synthia_batch.job.select import Decontaminate
from synthia_batch.results.select.compare import spell_value

NO_ROW = -1
"""Stands for the row of a benchmark where there is none."""
_WORD = re.compile(r"[^\W_]+")
_KNOWN_WORDS = 100_000
_ROWS_PER_FILE = 2**40
"""More than a file has: a row's number is that of its file times this, and its line."""


class _Grams(NamedTuple):
    """The hashes of a benchmark's runs of words, ascending, and the first row that each is in."""

    hashes: NDArray[np.uint64]
    rows: NDArray[np.int64]


class Benchmark:
    """The texts of a column of a benchmark's files. `digests` are those of the files by name."""

    def __init__(self, step: Decontaminate) -> None:
        """Find the files and their digests; what is in them is read when the first text is compared.

        Raises:
            UsageError: A file is missing or damaged, or has no such column in its first rows.
        """
        self._step, known = step, open_digest_cache()
        with _name_step():
            self._files = digest_contents(resolve_inputs([str(step.against)], known).files, known)
        for file in self._files:
            with _name_step():
                names = [
                    *dict.fromkeys(key for record in open_file(file).peek(DETECT_ROWS) for key in record)
                ]
            if step.column not in names:
                there = suggest(step.column, names)
                raise UsageError(f"decontaminate.column: {file.shown} has no column {step.column}{there}")
        self.digests = {file.name: digest_files([file]) for file in self._files}

    def find(self, value: Any) -> int:
        """Return the first row that a value, as a text, shares words with; NO_ROW if there is none."""
        if isinstance(value, Undefined):
            return NO_ROW
        hashes, grams = _hash_runs(spell_value(value), self._step.ngram), self._grams
        places = np.searchsorted(grams.hashes[:-1], hashes)  # At most the last one.
        found = places[grams.hashes[places] == hashes] if len(grams.hashes) else ()
        return int(grams.rows[found].min()) if len(found) else NO_ROW

    def name(self, row: int) -> str:
        """Return the place of a row that `find` returned: file and line, or row of a file without lines."""
        file, line = divmod(row, _ROWS_PER_FILE)
        return f"row {line} of {self._files[file].name}"

    @cached_property
    def _grams(self) -> _Grams:
        hashes, rows = bytearray(), array("q")
        with _name_step():
            for number, file in enumerate(self._files):
                for line, value in open_file(file).read_column(self._step.column):
                    if value is not None:
                        found = _hash_runs(spell_value(value), self._step.ngram)
                        hashes.extend(found.tobytes())
                        rows.extend([number * _ROWS_PER_FILE + line] * len(found))
        different, firsts = np.unique(np.frombuffer(hashes, np.uint64), return_index=True)
        return _Grams(different, np.frombuffer(rows, np.int64)[firsts])


@contextmanager
def _name_step() -> Iterator[None]:
    """Let errors about the benchmark say that they are."""
    try:
        yield
    except InputRefused as exc:
        raise UsageError(f"decontaminate.against: {'; '.join(exc.faults)}") from exc
    except (UsageError, ExpressionFailed) as exc:
        raise UsageError(f"decontaminate.against: {exc}") from exc


def split_words(text: str) -> list[str]:
    """Return the words of a text as they are compared."""
    return _WORD.findall(unicodedata.normalize("NFKC", text).lower())


def _hash_runs(text: str, ngram: int) -> NDArray[np.uint64]:
    """Return the hash of each run of `ngram` words of a text, of all its words if it has fewer."""
    words = split_words(text)
    if not words:
        return np.zeros(0, np.uint64)
    hashes = np.frombuffer(b"".join(map(_hash_word, words)), "<u8")
    runs = np.lib.stride_tricks.sliding_window_view(hashes, min(ngram, len(words)))
    # Sums modulo 2**64 of hashes by odd factors, which are other ones in each place.
    sums: NDArray[np.uint64] = (runs * _list_factors(runs.shape[1])).sum(axis=1, dtype=np.uint64)
    return sums


@lru_cache(maxsize=_KNOWN_WORDS)
def _hash_word(word: str) -> bytes:
    return blake3(word.encode()).digest(length=8)


@cache
def _list_factors(count: int) -> NDArray[np.uint64]:
    """Return odd numbers of 64 bits, one for each word of a run."""
    factors: NDArray[np.uint64] = np.frombuffer(blake3(b"ngram").digest(length=8 * count), "<u8")
    return factors | np.uint64(1)
