"""The environment variables and the CPU core of a process, set before vllm is imported there."""

import os

from synthia_batch.core.telemetry import PRIVACY
from synthia_batch.core.vision import hide_other_builds
from synthia_batch.job.resolved import EngineSpec
from synthia_batch.workers.engine import Placement
from synthia_batch.workers.leftovers import clear_leftovers, describe_leftovers
from synthia_batch.workers.vllm.prefix_cuts import ASKED

_IN_PROCESS = "VLLM_ENABLE_V1_MULTIPROCESSING"
"""0 keeps vLLM's core in the process that creates the engine."""
_THREADS = "OMP_NUM_THREADS"
_THREADS_OF_RAY = "1"
"""Ray sets OMP_NUM_THREADS to the CPUs of an actor, here 1, unless it is set already."""


def prepare_environment(spec: EngineSpec, placement: Placement) -> None:
    """Set up this process for the engine of `spec`. Overrides the user only where tokens depend on it."""
    required = required_environment(spec)
    if spec.determinism == "strict":
        clear_leftovers(os.environ, required)
    os.environ.update(required)
    for name, value in preferred_environment(spec).items():
        os.environ.setdefault(name, value)
    if isinstance(token := spec.settings.get("hf_token"), str):
        os.environ["HF_TOKEN"] = token  # As an argument vLLM would log it.
    if (
        spec.device == "cuda"
        and placement.user_threads is None
        and os.environ.get(_THREADS) == _THREADS_OF_RAY
    ):
        # With it vLLM would neither load weights nor prepare inputs in several threads.
        del os.environ[_THREADS]
    hide_other_builds()
    if placement.core is not None:
        # Threads inherit their creator's cores, and vLLM has not created its threads yet. By default
        # every CPU engine takes core 0.
        os.sched_setaffinity(0, {placement.core})


def required_environment(spec: EngineSpec) -> dict[str, str]:
    """Return the variables that affect the engine's tokens; they override the user's."""
    cuts = {ASKED: "1"} if spec.cuts_prefixes else {}
    if spec.device == "cpu":
        # With one thread per engine, tokens do not depend on the batch size.
        variables = {"VLLM_CPU_OMP_THREADS_BIND": "nobind", "OMP_NUM_THREADS": "1"}
        # The padded GEMM and the adapter patch apply to this process only: a core in another process
        # would compute without them.
        is_patched = spec.determinism == "strict" or bool(spec.adapters)
        return variables | ({_IN_PROCESS: "0"} if is_patched else {}) | cuts
    return {
        # Set explicitly to 0 as well: a value left in the shell would change the tokens of a fast run.
        "VLLM_BATCH_INVARIANT": "1" if spec.determinism == "strict" else "0",
        # FlashInfer's sampler takes no seeds, and every request has one. vLLM would only run it to warm up,
        # without a seed, which compiles it: the start fails without nvcc (vllm#49497).
        "VLLM_USE_FLASHINFER_SAMPLER": "0",
        **cuts,
    }


def describe_environment(spec: EngineSpec) -> str:
    """Return the variables of vLLM, except this package's own, that may change tokens; "" if none."""
    return describe_leftovers(required_environment(spec))


def preferred_environment(spec: EngineSpec) -> dict[str, str]:
    """Return the default variables, used unless the user has set them."""
    variables = {**PRIVACY, "VLLM_LOGGING_LEVEL": "INFO", "TOKENIZERS_PARALLELISM": "false"}
    if spec.model.path is not None and spec.model.path.exists():
        # All files are here; asking the Hub only costs time. On a cluster's other machines they may not be.
        variables["HF_HUB_OFFLINE"] = "1"
    if spec.device == "cpu":
        # Weights in huge pages if the system grants them on request.
        variables["THP_MEM_ALLOC_ENABLE"] = "1"
        # In one process an engine starts in a third of the time and runs at the same speed.
        variables[_IN_PROCESS] = "0"
        if not compiles(spec):
            # Even then vLLM would compile some functions with a C++ compiler on their first call.
            variables["TORCHDYNAMO_DISABLE"] = "1"
    return variables


def starts_processes(spec: EngineSpec) -> bool:
    """Whether the engine of `spec` may start processes of its own."""
    if spec.kind != "vllm":
        return False
    parts = spec.tensor_parallel_size * spec.pipeline_parallel_size
    variables = {**preferred_environment(spec), **os.environ, **required_environment(spec)}
    return parts > 1 or variables.get(_IN_PROCESS, "1") != "0"


def compiles(spec: EngineSpec) -> bool:
    """Whether the engine of `spec` compiles its model; on CPUs only if the user enables it."""
    return spec.device != "cpu" or not spec.settings.get("enforce_eager", True)
