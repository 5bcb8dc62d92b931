"""Checks a job's sampling against the installed vLLM's SamplingParams, without importing vllm.

As for the engine's settings, the file with its fields is parsed. The bounds of values are in `job.sampling`,
taken from SamplingParams._verify_args of vLLM 0.32.0.
"""

from collections.abc import Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from synthia_batch.core.errors import UsageError
from synthia_batch.job.sampling import Sampling
from synthia_batch.workers.vllm.arguments import STRUCTURES, sampling_arguments, structures_config
from synthia_batch.workers.vllm.settings import find_class


def check_sampling(sampling: Sampling, vocabulary: int | None) -> None:
    """Check that the installed vLLM has every parameter of `sampling` and that they are consistent.

    `vocabulary` is the model's number of tokens, None if unknown.

    Raises:
        UsageError: A parameter is missing, two are inconsistent, or a token id is outside the vocabulary.
    """
    used = {name for name, value in sampling_arguments(sampling).items() if value is not None}
    missing = sorted(used - find_class("sampling_params.py", "SamplingParams").keys())
    if missing:
        raise UsageError(
            f"sampling.{missing[0]}: the installed vLLM has no such parameter; leave it out, or install a "
            "release with it"
        )
    if sampling.min_tokens > sampling.max_tokens:
        raise UsageError(
            f"sampling.min_tokens: {sampling.min_tokens} is above sampling.max_tokens, "
            f"{sampling.max_tokens}; lower the first or raise the second"
        )
    if vocabulary is not None:
        _check_ids(sampling, vocabulary)


def check_budget(settings: Mapping[str, Any], sampling: Sampling) -> None:
    """Check that vLLM has a reasoning parser if the length of reasoning is limited.

    Raises:
        UsageError: It has none.
    """
    if sampling.thinking_token_budget is not None and not settings.get("reasoning_parser"):
        raise UsageError(
            "sampling.thinking_token_budget: vLLM needs a parser to find the reasoning; add "
            "--reasoning-parser NAME"
        )


def check_structures(settings: Mapping[str, Any], sampling: Sampling, *, is_required: bool) -> None:
    """Check that these engine settings allow structured answers.

    `is_required`: the job requires a structure for every answer.

    Raises:
        UsageError: They do not.
    """
    if is_required and (sampling.min_tokens or sampling.ignore_eos):
        raise UsageError(
            "sampling.min_tokens and sampling.ignore_eos: a structured answer ends with its structure; "
            "leave them out"
        )
    config = settings.get(STRUCTURES)
    if config is None or (isinstance(config, Mapping) and config.get("backend", "") != "auto"):
        return
    raise UsageError(
        f"engine.{STRUCTURES}: set one backend, such as {{backend: guidance}}; with vLLM's `auto` "
        "answers would depend on which request is first"
    )


def name_structures_backend(settings: Mapping[str, Any]) -> str:
    """Return the structured-output backend, with its version if it is installed here."""
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
