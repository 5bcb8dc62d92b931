"""Which engine settings `tune` tries next. Pure: speeds in, settings out.

Every try is an engine that loads, so there are few: one setting after the other is walked from its
default in doubled steps, for as long as each step is a gain.
"""

from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from synthia_batch.job.resolved import EngineSpec
from synthia_batch.workers.vllm.arguments import CPU_MAX_NUM_SEQS, GPU_MAX_NUM_SEQS

Settings = Mapping[str, Any]

LEAST_GAIN = 1.03
"""A step that brings less is no gain: two measurements of one setting differ by that."""
_BATCH = {"cpu": CPU_MAX_NUM_SEQS, "cuda": GPU_MAX_NUM_SEQS}
"""The batch that vLLM engines have by default; on some GPUs vLLM takes more."""
_SCRIPTED_BATCH = 64
_BATCH_STEPS = 3
_CPU_STEP_TOKENS = 2048
"""A CPU engine's step holds that many tokens, or a whole sequence where that is more."""
_GPU_STEP_TOKENS = (16384, 32768)
_DRAFT_TOKENS = (3, 5)


@dataclass(frozen=True, slots=True, kw_only=True)
class Axis:
    """One setting. Each direction is a row of values to walk from the default on."""

    key: str
    directions: tuple[tuple[Any, ...], ...]


def list_axes(spec: EngineSpec, prompts: int) -> tuple[Axis, ...]:
    """Return what there is to vary for an engine that gets `prompts` prompts: not what was said already.

    Speculative decoding is left out where `explain_no_drafts` says why.
    """
    axes = [_make_batch_axis(spec, prompts)]
    if spec.kind == "vllm":
        axes.append(_make_step_axis(spec))
        if explain_no_drafts(spec) is None:
            axes.append(Axis(key="speculative_config", directions=(tuple(map(_draft, _DRAFT_TOKENS)),)))
    return tuple(axis for axis in axes if axis.key not in spec.settings and any(axis.directions))


def explain_no_drafts(spec: EngineSpec) -> str | None:
    """Return why speculative decoding is not tried; None where it is."""
    if spec.kind == "scripted":
        return "the scripted engine has none"
    if spec.determinism == "strict":
        return "it breaks strict determinism (--determinism fast)"
    if spec.device == "cpu":
        # Seen on 2026-11-21: apply_top_k_only of its rejection sampler gets no rows.
        return "vLLM 0.32.0 on CPUs dies of it when it samples with top_k"
    return None


def usual_batch(spec: EngineSpec) -> int:
    """Return how many requests an engine of `spec` runs at the same time."""
    default = _SCRIPTED_BATCH if spec.kind == "scripted" else _BATCH[spec.device]
    return int(spec.settings.get("max_num_seqs", default))


def is_gain(speed: float, before: float) -> bool:
    """Whether `speed` is more than another measurement of what gave `before` could have brought."""
    return speed >= before * LEAST_GAIN


def search(axes: Sequence[Axis]) -> Generator[Settings, float, None]:
    """Yield settings to measure, the defaults first; send their speed, 0 where they do not work.

    An axis starts from the best of those before it: the last that was a gain.
    """
    best: Settings = {}
    speed = yield best
    for axis in axes:
        for direction in axis.directions:
            has_gained = False
            for value in direction:
                trial = {**best, axis.key: value}
                found = yield trial
                if not is_gain(found, speed):
                    break
                best, speed, has_gained = trial, found, True
            if has_gained:
                break  # The other way leads back.


def _make_batch_axis(spec: EngineSpec, prompts: int) -> Axis:
    usual = usual_batch(spec)
    # With fewer prompts than that, more places would stay empty.
    base = min(usual, prompts)
    larger = tuple(base << n for n in range(1, _BATCH_STEPS) if base << n <= prompts)
    smaller = tuple(base >> n for n in range(1, _BATCH_STEPS) if base >> n)
    return Axis(key="max_num_seqs", directions=tuple(filter(None, (larger, smaller))))


def _make_step_axis(spec: EngineSpec) -> Axis:
    if spec.device == "cuda":
        return Axis(key="max_num_batched_tokens", directions=(_GPU_STEP_TOKENS,))
    base = max(spec.max_model_len, _CPU_STEP_TOKENS)
    return Axis(key="max_num_batched_tokens", directions=((2 * base, 4 * base),))


def _draft(tokens: int) -> dict[str, Any]:
    """Return the setting that has vLLM propose what followed the same words earlier in the prompt."""
    return {"method": "ngram", "num_speculative_tokens": tokens, "prompt_lookup_max": 4}
