"""Engine settings that `tune` found, saved in the user's cache for later jobs.

Saved per model, hardware and engine. Only settings outside a job's identity are saved, so a run that
began before the tuning can be resumed afterwards.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any

from synthia_batch.core.cache import find_user_cache, replace_cached
from synthia_batch.core.digest import digest_json
from synthia_batch.job.identity import NOT_IDENTITY, Numerics
from synthia_batch.job.loading.merge import Layer
from synthia_batch.job.resolved import EngineSpec


@dataclass(frozen=True, slots=True, kw_only=True)
class Tuned:
    """Tuned settings. `place` is the model, the hardware and the engine that they hold for."""

    place: Mapping[str, Any]
    settings: Mapping[str, Any]
    tokens_per_second: float
    found_on: date


def describe_place(identity: Mapping[str, Any], numerics: Numerics, engine: EngineSpec) -> dict[str, Any]:
    """Return the place for which a result of `tune` is valid."""
    return {
        "model": identity["model"],
        "engine": engine.kind,
        "version": numerics.version,
        "hardware": numerics.hardware,
        "determinism": engine.determinism,
        "tensor_parallel_size": engine.tensor_parallel_size,
        "pipeline_parallel_size": engine.pipeline_parallel_size,
    }


def keep_tuned(tuned: Tuned) -> Mapping[str, Any]:
    """Save tuned settings, replacing earlier ones; return the settings that later jobs get."""
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
    """Return the layer of tuned settings for `place`, None if there are none or the cache is unreadable."""
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
