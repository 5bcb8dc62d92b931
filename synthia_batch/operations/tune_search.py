"""Choose the engine settings that `tune` tries next. Pure: speeds in, settings out.

Each trial loads an engine, so there are few: one setting at a time is doubled or halved from its
default for as long as each step is an improvement.
"""

from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from synthia_batch.job.resolved import EngineSpec
from synthia_batch.workers.vllm.arguments import CPU_MAX_NUM_SEQS, GPU_MAX_NUM_SEQS

Settings = Mapping[str, Any]

LEAST_GAIN = 1.03
"""Smaller speed-ups are noise: two measurements of the same settings differ by as much."""
_BATCH = {"cpu": CPU_MAX_NUM_SEQS, "cuda": GPU_MAX_NUM_SEQS}
"""The default batch size of vLLM engines; on some GPUs vLLM uses more."""
_SCRIPTED_BATCH = 64
_BATCH_STEPS = 3
_CPU_STEP_TOKENS = 2048
"""Tokens per step of a CPU engine, or those of a whole sequence if more."""
_GPU_STEP_TOKENS = (16384, 32768)
_DRAFT_TOKENS = (3, 5)


@dataclass(frozen=True, slots=True, kw_only=True)
class Axis:
    """One setting. Each direction is a sequence of values, starting next to the default."""

    key: str
    directions: tuple[tuple[Any, ...], ...]


def list_axes(spec: EngineSpec, prompts: int) -> tuple[Axis, ...]:
    """Return the settings to vary for an engine with `prompts` prompts, except those set explicitly.

    Includes speculative decoding unless `explain_no_drafts` gives a reason.
    """
    axes = [_make_batch_axis(spec, prompts)]
    if spec.kind == "vllm":
        axes.append(_make_step_axis(spec))
        if explain_no_drafts(spec) is None:
            axes.append(Axis(key="speculative_config", directions=(tuple(map(_draft, _DRAFT_TOKENS)),)))
    return tuple(axis for axis in axes if axis.key not in spec.settings and any(axis.directions))


def explain_no_drafts(spec: EngineSpec) -> str | None:
    """Return why speculative decoding is not tried; None if it is."""
    if spec.kind == "scripted":
        return "the scripted engine does not support it"
    if spec.determinism == "strict":
        return "it breaks strict determinism (--determinism fast)"
    if spec.device == "cpu":
        # Seen on 2026-11-21: apply_top_k_only of its rejection sampler gets no rows.
        return "vLLM 0.32.0 crashes with it on CPUs when sampling with top_k"
    return None


def usual_batch(spec: EngineSpec) -> int:
    """Return the batch size of an engine with `spec`."""
    default = _SCRIPTED_BATCH if spec.kind == "scripted" else _BATCH[spec.device]
    return int(spec.settings.get("max_num_seqs", default))


def is_gain(speed: float, before: float) -> bool:
    """Whether `speed` exceeds `before` by more than the noise between measurements."""
    return speed >= before * LEAST_GAIN


def search(axes: Sequence[Axis]) -> Generator[Settings, float, None]:
    """Yield settings to measure, defaults first; send their speed, or 0 if they fail.

    Each axis starts from the best settings so far.
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
                break  # The other direction leads back.


def _make_batch_axis(spec: EngineSpec, prompts: int) -> Axis:
    usual = usual_batch(spec)
    # With fewer prompts, a larger batch would stay partly empty.
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
    """Return n-gram speculation: vLLM drafts what followed the same words earlier in the prompt."""
    return {"method": "ngram", "num_speculative_tokens": tokens, "prompt_lookup_max": 4}
