"""Log-probabilities in a journal: flat JSON lists.

Nine digits identify every 32-bit float, so values are read back bit for bit. Tokens that vLLM forbids have
minus infinity, which JSON cannot express: they are null.
"""

import sys
from array import array
from collections.abc import Mapping
from math import inf
from typing import Any

from synthia_batch.core.types import Logprobs

DIGITS = 9
"""C's FLT_DECIMAL_DIG."""


def encode_logprobs_json(logprobs: Logprobs) -> dict[str, Any]:
    return {
        "width": logprobs.width,
        "ids": logprobs.ids.tolist(),
        "tokens": logprobs.tokens,
        "values": [None if value == -inf else float(f"{value:.{DIGITS}g}") for value in logprobs.values],
    }


def decode_logprobs_json(value: Mapping[str, Any]) -> Logprobs:
    """Return the log-probabilities that encode_logprobs_json turned into `value`."""
    return Logprobs(
        width=value["width"],
        ids=array("i", value["ids"]),
        tokens=tuple(sys.intern(token) for token in value["tokens"]),
        values=array("f", [-inf if number is None else number for number in value["values"]]),
    )
