"""What strict determinism costs on a GPU: measured by `make gpu-check`, or estimated from vLLM's source."""

import json
from collections.abc import Mapping
from dataclasses import dataclass

from synthia_batch.core.cache import find_user_cache, replace_cached

MEASURED_NAME = "strict-cost.json"
"""In the user's cache: for each card, what `make gpu-check` measured on it here."""
ESTIMATE = "2 to 4"
"""Times the time of fast, from the source of vLLM 0.32: batch-invariant matrix products without tuned tiles,
memory reserved for the longest answer, Triton's attention, no prefix cache."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StrictCost:
    """How many times the time of fast strict took on a card, and the day (YYYY-MM-DD) of the measurement."""

    factor: float
    day: str


MEASURED: Mapping[str, StrictCost] = {}
"""By the card's name, from results in benchmarks/results. None yet: no GPU was at hand."""


def find_measured(card: str) -> StrictCost | None:
    """Return what was measured on `card`, here before elsewhere."""
    try:
        entry = json.loads((find_user_cache() / MEASURED_NAME).read_bytes())[card]
        return StrictCost(factor=float(entry["factor"]), day=str(entry["day"]))
    except (OSError, ValueError, KeyError, TypeError):
        return MEASURED.get(card)


def describe_strict_cost(card: str) -> str:
    """Return what strict costs on `card`, "" if it is unknown, and how to do without."""
    cost = find_measured(card)
    if cost is None:
        found = f"about {ESTIMATE} times the time of fast: not measured on this card"
    else:
        found = f"{cost.factor:.1f} times the time of fast: measured on {card}, {cost.day}"
    return f"strict costs {found}; --determinism fast gives it up"


def save_measured(card: str, cost: StrictCost) -> None:
    """Keep the cost measured on `card` in the user's cache."""
    path = find_user_cache() / MEASURED_NAME
    try:
        known = json.loads(path.read_bytes())
    except (OSError, ValueError):
        known = {}
    known[card] = {"factor": round(cost.factor, 2), "day": cost.day}
    replace_cached(path, (json.dumps(known, indent=2, sort_keys=True) + "\n").encode())
