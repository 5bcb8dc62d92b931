"""Log-probabilities as a journal has them: flat lists of JSON.

Nine digits tell every number of 32 bits from its neighbours, so that what is read is what was written, to
the last bit. What vLLM forbids has minus infinity, for which JSON has no number: null.
"""

import sys
from array import array
from collections.abc import Mapping
from math import inf
from typing import Any

from synthia_batch.core.types import Logprobs

DIGITS = 9
"""C's FLT_DECIMAL_DIG."""


def spell_logprobs(logprobs: Logprobs) -> dict[str, Any]:
    """Return them as values of JSON."""
    return {
        "width": logprobs.width,
        "ids": logprobs.ids.tolist(),
        "tokens": logprobs.tokens,
        "values": [None if value == -inf else float(f"{value:.{DIGITS}g}") for value in logprobs.values],
    }


def read_logprobs(value: Mapping[str, Any]) -> Logprobs:
    """Return what spell_logprobs gave `value` for.

    Raises:
        KeyError, TypeError: It gave no such value.
    """
    return Logprobs(
        width=value["width"],
        ids=array("i", value["ids"]),
        tokens=tuple(sys.intern(token) for token in value["tokens"]),
        values=array("f", [-inf if number is None else number for number in value["values"]]),
    )
