"""The column of log-probabilities: an answer's tokens, each with the likeliest tokens at its position."""

import sys
from array import array
from collections.abc import Sequence
from itertools import accumulate
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from synthia_batch.core.types import Logprobs

_ENTRY = [("token_id", pa.int32()), ("token", pa.string()), ("logprob", pa.float32())]
_TOP = pa.list_(pa.struct(_ENTRY))
LOGPROBS = pa.list_(pa.struct([*_ENTRY, ("top", _TOP)]))
"""list<struct<token_id int32, token string, logprob float32, top list<struct<the same three>>>>"""


def encode_logprobs(answers: Sequence[Logprobs | None]) -> pa.Array:
    """Return the column of these answers, null for an answer without log-probabilities."""
    known = [answer for answer in answers if answer is not None and answer.width]
    places = [len(answer.ids) // answer.width if answer and answer.width else 0 for answer in answers]
    # For each entry: whether it is the answer's token, or one of the likeliest beside it.
    is_own = np.concatenate([_mark_own(answer) for answer in known] or [np.zeros(0, bool)])
    ids = np.concatenate([np.frombuffer(answer.ids, np.int32) for answer in known] or [np.zeros(0, np.int32)])
    values = np.concatenate(
        [np.frombuffer(answer.values, np.float32) for answer in known] or [np.zeros(0, np.float32)]
    )
    tokens = pa.array([token for answer in known for token in answer.tokens], pa.string())
    widths = [answer.width - 1 for answer in known for _ in range(len(answer.ids) // answer.width)]
    top = pa.ListArray.from_arrays(
        _count_up(widths),
        pa.StructArray.from_arrays(_pick(ids, tokens, values, ~is_own), fields=list(_TOP.value_type)),
        type=_TOP,
    )
    entries = pa.StructArray.from_arrays(
        [*_pick(ids, tokens, values, is_own), top], fields=list(LOGPROBS.value_type)
    )
    missing = pa.array([answer is None for answer in answers], pa.bool_())
    return pa.ListArray.from_arrays(_count_up(places), entries, type=LOGPROBS, mask=missing)


def decode_logprobs(column: pa.ChunkedArray) -> list[Logprobs | None]:
    """Return the log-probabilities in such a column, one per answer."""
    return [None if answer is None else _pack(answer) for answer in column.to_pylist()]


def _pack(answer: Sequence[dict[str, Any]]) -> Logprobs:
    entries = [entry for place in answer for entry in (place, *place["top"])]
    return Logprobs(
        width=len(entries) // max(1, len(answer)),
        ids=array("i", [entry["token_id"] for entry in entries]),
        tokens=tuple(sys.intern(entry["token"]) for entry in entries),
        values=array("f", [entry["logprob"] for entry in entries]),
    )


def _mark_own(answer: Logprobs) -> NDArray[np.bool_]:
    is_own: NDArray[np.bool_] = np.arange(len(answer.ids)) % answer.width == 0
    return is_own


def _pick(
    ids: NDArray[np.int32], tokens: pa.Array, values: NDArray[np.float32], chosen: NDArray[np.bool_]
) -> list[pa.Array]:
    return [pa.array(ids[chosen]), tokens.filter(pa.array(chosen)), pa.array(values[chosen])]


def _count_up(lengths: Sequence[int]) -> pa.Array:
    return pa.array([0, *accumulate(lengths)], pa.int32())
