"""The resolved engine: its specification, and everything that its numerical results depend on."""

import dataclasses
import logging
import os
from collections.abc import Mapping
from typing import Any

from synthia_batch.core.errors import UsageError
from synthia_batch.core.hardware import installed_vllm, list_capabilities, name_cpu, name_gpus
from synthia_batch.core.strict_cost import describe_strict_cost
from synthia_batch.job.identity import Numerics
from synthia_batch.job.loading.layer import find_layer
from synthia_batch.job.loading.merge import Merged
from synthia_batch.job.loading.secrets import reveal_settings
from synthia_batch.job.loading.trust import OTHERS_FILE
from synthia_batch.job.resolved import UNKNOWN_LENGTH, EngineSpec, PromptSpec
from synthia_batch.job.sampling import Sampling
from synthia_batch.job.schema import Job
from synthia_batch.models.prompts.tokenizer import open_format
from synthia_batch.models.weights import weigh_model
from synthia_batch.runner.resolve.answers import check_logprobs, read_structure
from synthia_batch.runner.resolve.model_selection import FoundModel, choose_device
from synthia_batch.workers.openai import settings as openai_settings
from synthia_batch.workers.vllm.compat import check_cpu_patches
from synthia_batch.workers.vllm.policy import check_capability, check_quantization
from synthia_batch.workers.vllm.sampling import (
    check_budget,
    check_sampling,
    check_structures,
    name_structures_backend,
)
from synthia_batch.workers.vllm.settings import check_processes, check_settings

_log = logging.getLogger(__name__)

SCRIPTED_MODEL_LEN = 8192
KEY_VARIABLE = "OPENAI_API_KEY"
"""Read by every client of an endpoint."""


def specify_engine(merged: Merged, found: FoundModel, prompt: PromptSpec) -> EngineSpec:
    """Return everything that a worker needs to start the engine of the `merged` job."""
    if merged.job.engine.kind == "openai":
        return _specify_endpoint(merged, found, prompt)
    length = _choose_length(merged, found)
    if merged.job.engine.kind == "vllm":
        if found.facts is not None or installed_vllm() is not None:
            _check_vllm(merged, found)
    else:
        _parse_scripted(merged.job.engine.settings)
    spec = _specify_local(merged, found, prompt, length)
    if spec.kind == "vllm":
        _check_vllm_spec(spec, found, is_elsewhere=bool(merged.job.pool.ray_address))
    return spec


def describe_job_cost(engine: EngineSpec) -> str | None:
    """Return what strict determinism costs on a GPU, None if `engine` is not strict or not on one."""
    if engine.kind != "vllm" or engine.device != "cuda" or engine.determinism != "strict":
        return None
    return describe_strict_cost(next(iter(name_gpus()), ""))


def add_settings(engine: EngineSpec, settings: Mapping[str, Any]) -> EngineSpec:
    """Return `engine` with those of `settings` that it does not have."""
    if engine.kind == "vllm":
        check_settings(settings, engine.device, engine.determinism)
    merged = {**settings, **engine.settings}
    if engine.kind == "openai":
        openai_settings.parse_settings(merged)
    elif engine.kind == "scripted":
        _parse_scripted(merged)
    return dataclasses.replace(engine, settings=merged)


def _parse_scripted(settings: Mapping[str, Any]) -> None:
    from synthia_batch.workers.scripted import parse_options

    parse_options(settings)


def find_numerics(engine: EngineSpec, *, has_structures: bool) -> Numerics:
    """Return what else the last bits depend on; `has_structures`: some answers have a structure."""
    if engine.is_elsewhere:
        return Numerics(version="the server's", hardware=None)
    if engine.kind == "scripted":
        from synthia_batch.workers.scripted import VERSION

        return Numerics(version=VERSION, hardware=None)
    hardware = name_cpu() if engine.device == "cpu" else _name_gpu_kind()
    return Numerics(
        version=" ".join(installed_vllm() or ()),
        hardware=hardware,
        structures=name_structures_backend(engine.settings) if has_structures else None,
    )


def _check_vllm(merged: Merged, found: FoundModel) -> None:
    """Return if vLLM is installed and accepts its settings and the sampling."""
    job, settings = merged.job, merged.job.engine.settings
    if installed_vllm() is None:
        raise UsageError(
            "vLLM is not installed: `pip install 'synthia-batch[cuda]'` on a GPU machine, "
            "'synthia-batch[cpu]' elsewhere; or rehearse with --engine scripted"
        )
    device = choose_device(job)
    # A plugin adds names of parsers, so a name cannot be checked without it.
    plugin = {name: value for name, value in settings.items() if name.endswith("_parser_plugin")}
    for name, value in settings.items():
        with merged.locate_errors(f"engine.{name}"):
            check_settings({**plugin, name: value}, device, job.determinism)
    check_sampling(job.sampling, found.facts.vocabulary if found.facts else None)
    check_budget(settings, job.sampling)
    check_structures(settings, job.sampling, is_required=job.structured.kind is not None)


def _specify_local(merged: Merged, found: FoundModel, prompt: PromptSpec, length: int) -> EngineSpec:
    job = merged.job
    check_logprobs(job, choose_device(job))
    return EngineSpec(
        kind=job.engine.kind,
        model=found.ref,
        device=choose_device(job),
        dtype=job.model.dtype,
        quantization=job.model.quantization,
        max_model_len=length,
        sampling=_add_stops(job.sampling, prompt),
        determinism=job.determinism,
        tensor_parallel_size=job.pool.tensor_parallel_size,
        pipeline_parallel_size=job.pool.pipeline_parallel_size,
        settings=reveal_settings(job.engine.settings, os.environ),
        adapters=found.adapters,
        structure=read_structure(merged),
        uses_mla=bool(found.facts and found.facts.uses_mla),
        weights_bytes=_weigh(job, found) if job.pool.engines_per_gpu > 1 else None,
    )


def _weigh(job: Job, found: FoundModel) -> int | None:
    path = found.ref.gguf or found.ref.path
    return weigh_model(str(path), None, choose_device(job)).weights_bytes if path is not None else None


def _check_vllm_spec(spec: EngineSpec, found: FoundModel, *, is_elsewhere: bool) -> None:
    """Return if this machine and the checkpoint allow it; on a cluster each worker checks its own GPUs."""
    check_processes(spec)
    warning = check_cpu_patches(spec, (installed_vllm() or ("", ""))[1])
    if warning is not None:
        _log.warning(warning)
    of_model = found.facts.quantization if found.facts else None
    check_quantization(spec, of_model.method if of_model else None)
    if spec.device == "cuda" and spec.determinism == "strict" and not is_elsewhere:
        for capability, name in zip(list_capabilities(), name_gpus(), strict=False):
            check_capability(capability, name)


def _specify_endpoint(merged: Merged, found: FoundModel, prompt: PromptSpec) -> EngineSpec:
    job = merged.job
    settings = openai_settings.parse_settings(job.engine.settings)
    api = openai_settings.choose_api(settings, prompt.format)
    openai_settings.check_answers(job, api)
    openai_settings.check_sampling(job.sampling, settings, merged.origins)
    structure = read_structure(merged)
    openai_settings.check_structure(structure, settings)
    key = _find_key(merged, settings.api_key is not None)
    non_defaults = openai_settings.list_non_defaults(settings, api)
    return EngineSpec(
        kind="openai",
        model=found.ref,
        device="cpu",
        dtype="auto",
        quantization=None,
        max_model_len=UNKNOWN_LENGTH,
        sampling=_add_stops(job.sampling, prompt),
        determinism=job.determinism,
        tensor_parallel_size=1,
        pipeline_parallel_size=1,
        settings=reveal_settings({**key, **non_defaults}, os.environ),
        structure=structure,
    )


def _find_key(merged: Merged, is_set: bool) -> dict[str, str]:
    """Return OpenAI's own variable as a reference, unless a key `is_set`.

    Raises:
        UsageError: The address that would get it is in a file of somebody else.
    """
    if is_set or not os.environ.get(KEY_VARIABLE):
        return {}
    layer = find_layer("engine.base_url", merged.layers)
    if layer is not None and not layer.is_own:
        at = layer.find_place("engine.base_url")
        raise UsageError(
            f"{at.at_value or at.origin}: engine.base_url: {KEY_VARIABLE} is not sent there: {OTHERS_FILE}"
        )
    return {"api_key": f"${{{KEY_VARIABLE}}}"}


def _add_stops(sampling: Sampling, prompt: PromptSpec) -> Sampling:
    """Return `sampling` with the stop strings of the prompt's format added."""
    stop = tuple(dict.fromkeys((*sampling.stop, *open_format(prompt).stop)))
    return sampling.model_copy(update={"stop": stop})


def _choose_length(merged: Merged, found: FoundModel) -> int:
    job = merged.job
    known = found.facts.max_model_len if found.facts else None
    if job.engine.kind == "scripted" and found.facts is None:
        known = SCRIPTED_MODEL_LEN
    wanted = job.model.max_model_len
    if wanted is not None and known is not None and not merged.is_explicit("model.max_model_len"):
        return min(wanted, known)  # The preset's length, limited to the model's own.
    length = wanted or known
    if length is None and found.facts is None:
        return UNKNOWN_LENGTH
    if length is None:
        raise UsageError(
            f"{found.ref.name}: its config.json has no maximum sequence length; "
            "set it with --set model.max_model_len=TOKENS"
        )
    return length


def _name_gpu_kind() -> str:
    """Return this machine's GPU model. If it is unknown here, only the canary compares the hardware:
    a resumed run must answer it as the first attempt did.
    """
    return ", ".join(sorted(set(name_gpus()))) or "as the canary says"
