"""Checks a job's sampling against the installed vLLM's own SamplingParams, without importing vllm.

As with the engine's settings, the one file that has its fields is parsed instead. The bounds of values
are those of `job.sampling`, taken from SamplingParams._verify_args of vLLM 0.32.0.
"""

from collections.abc import Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from synthia_batch.errors import UsageError
from synthia_batch.job.sampling import Sampling
from synthia_batch.workers.vllm.arguments import STRUCTURES, sampling_arguments, structures_config
from synthia_batch.workers.vllm.settings import find_class


def check_sampling(sampling: Sampling, vocabulary: int | None) -> None:
    """Return if the installed vLLM has every parameter of `sampling`, and they go together.

    `vocabulary` is the number of tokens that the model knows, None where its files do not say.

    Raises:
        UsageError: It has not, they do not, or a token id is none of the model's.
    """
    used = {name for name, value in sampling_arguments(sampling).items() if value is not None}
    missing = sorted(used - find_class("sampling_params.py", "SamplingParams").keys())
    if missing:
        raise UsageError(
            f"sampling.{missing[0]}: the installed vLLM has no such parameter; leave it out, or install a "
            "release that has it"
        )
    if sampling.min_tokens > sampling.max_tokens:
        raise UsageError(
            f"sampling.min_tokens: {sampling.min_tokens} is above sampling.max_tokens, "
            f"{sampling.max_tokens}; lower the one or raise the other"
        )
    if vocabulary is not None:
        _check_ids(sampling, vocabulary)


def check_budget(settings: Mapping[str, Any], sampling: Sampling) -> None:
    """Return if vLLM can tell where a reasoning begins, where its length is limited.

    Raises:
        UsageError: It cannot.
    """
    if sampling.thinking_token_budget is not None and not settings.get("reasoning_parser"):
        raise UsageError(
            "sampling.thinking_token_budget: vLLM has to know what reasoning looks like; say "
            "--reasoning-parser NAME as well"
        )


def check_structures(settings: Mapping[str, Any], sampling: Sampling, *, is_asked: bool) -> None:
    """Return if answers can be kept to a structure with these engine settings.

    `is_asked`: every answer has one, by the job.

    Raises:
        UsageError: They cannot.
    """
    if is_asked and (sampling.min_tokens or sampling.ignore_eos):
        raise UsageError(
            "sampling.min_tokens and sampling.ignore_eos: a structured answer ends where its structure does; "
            "leave them out"
        )
    config = settings.get(STRUCTURES)
    if config is None or (isinstance(config, Mapping) and config.get("backend", "") != "auto"):
        return
    raise UsageError(
        f"engine.{STRUCTURES}: name one backend, such as {{backend: guidance}}; vLLM's `auto` takes that of "
        "whichever request comes first, and answers would depend on it"
    )


def name_structures_backend(settings: Mapping[str, Any]) -> str:
    """Return what keeps answers to their structure, with its version where it is installed here."""
    name = str(structures_config(settings)["backend"])
    package = {"guidance": "llguidance", "outlines": "outlines_core"}.get(name, name)
    try:
        return f"{name} {version(package)}"
    except PackageNotFoundError:
        return name


def _check_ids(sampling: Sampling, vocabulary: int) -> None:
    named: dict[str, Sequence[int]] = {
        "stop_token_ids": sampling.stop_token_ids,
        "allowed_token_ids": sampling.allowed_token_ids,
        "logit_bias": tuple(sampling.logit_bias),
    }
    for name, ids in named.items():
        unknown = [token for token in ids if token >= vocabulary]
        if unknown:
            raise UsageError(
                f"sampling.{name}: the model has no token {unknown[0]}: it has {vocabulary}, counted from 0"
            )
