"""The environment variables and the CPU core of a process, set before vllm is imported there."""

import os

from synthia_batch.core.telemetry import PRIVACY
from synthia_batch.core.vision import hide_other_builds
from synthia_batch.job.resolved import EngineSpec
from synthia_batch.workers.engine import Placement
from synthia_batch.workers.vllm.prefix_cuts import ASKED

_IN_PROCESS = "VLLM_ENABLE_V1_MULTIPROCESSING"
"""0 keeps vLLM's core in the process that creates the engine."""


def prepare_environment(spec: EngineSpec, placement: Placement) -> None:
    """Set up this process for the engine of `spec`. Overrides the user only where tokens depend on it."""
    os.environ.update(required_environment(spec))
    for name, value in preferred_environment(spec).items():
        os.environ.setdefault(name, value)
    if isinstance(token := spec.settings.get("hf_token"), str):
        os.environ["HF_TOKEN"] = token  # As an argument vLLM would log it.
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
    # Set explicitly to 0 as well: a value left in the shell would change the tokens of a fast run.
    return {"VLLM_BATCH_INVARIANT": "1" if spec.determinism == "strict" else "0", **cuts}


def preferred_environment(spec: EngineSpec) -> dict[str, str]:
    """Return the default variables, used unless the user has set them."""
    variables = {**PRIVACY, "VLLM_LOGGING_LEVEL": "INFO", "TOKENIZERS_PARALLELISM": "false"}
    if spec.model.path is not None:
        variables["HF_HUB_OFFLINE"] = "1"  # All files are local; asking the Hub only costs time.
    if spec.device == "cpu":
        # Weights in huge pages if the system grants them on request.
        variables["THP_MEM_ALLOC_ENABLE"] = "1"
        # In one process an engine starts in a third of the time and runs at the same speed.
        variables[_IN_PROCESS] = "0"
        if not compiles(spec):
            # Even then vLLM would compile some functions with a C++ compiler on their first call.
            variables["TORCHDYNAMO_DISABLE"] = "1"
    return variables


def compiles(spec: EngineSpec) -> bool:
    """Whether the engine of `spec` compiles its model; on CPUs only if the user enables it."""
    return spec.device != "cpu" or not spec.settings.get("enforce_eager", True)
