"""The engine settings that `tune` has found, kept in the user's cache: a layer of later jobs.

Kept per model, hardware and engine. Only settings that are no part of a job's identity are kept:
a run that was begun before the tuning goes on in its directory afterwards.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any

from synthia_batch.core.cache import find_user_cache, replace_cached
from synthia_batch.core.digest import digest_json
from synthia_batch.job.identity import NOT_IDENTITY
from synthia_batch.job.loading.merge import Layer


@dataclass(frozen=True, slots=True, kw_only=True)
class Tuned:
    """What was found. `place` is the model, the hardware and the engine that it holds for."""

    place: Mapping[str, Any]
    settings: Mapping[str, Any]
    tokens_per_second: float
    found_on: date


def keep_tuned(tuned: Tuned) -> Mapping[str, Any]:
    """Remember what was found instead of what was before; return the settings that later jobs get.

    Raises:
        OSError: The cache cannot be written.
    """
    kept = {key: value for key, value in tuned.settings.items() if key in NOT_IDENTITY}
    record = {
        "place": dict(tuned.place),
        "settings": kept,
        "tokens_per_second": tuned.tokens_per_second,
        "found_on": tuned.found_on.isoformat(),
    }
    replace_cached(_find_file(tuned.place), json.dumps(record, indent=2).encode())
    return kept


def read_tuned(place: Mapping[str, Any]) -> Layer | None:
    """Return the layer that was found for `place`, None where nothing was or the cache cannot be read."""
    try:
        record = json.loads(_find_file(place).read_text(encoding="utf-8"))
        settings, found_on = record["settings"], date.fromisoformat(record["found_on"])
    except (OSError, ValueError, KeyError, TypeError):
        return None
    if not isinstance(settings, dict) or not settings.keys() <= NOT_IDENTITY:
        return None
    return Layer(origin=f"tuned on {found_on}", values={"engine": settings}, is_explicit=False)


def _find_file(place: Mapping[str, Any]) -> Path:
    return find_user_cache() / "tuned" / f"{digest_json(place)[:32]}.json"
