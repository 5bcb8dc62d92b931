"""What must stand in a process before vllm is imported there: its environment and its core."""

import os

from synthia_batch.core.telemetry import PRIVACY
from synthia_batch.job.resolved import EngineSpec
from synthia_batch.workers.engine import Placement

_IN_PROCESS = "VLLM_ENABLE_V1_MULTIPROCESSING"
"""0 keeps vLLM's core in the process that makes the engine."""


def prepare_environment(spec: EngineSpec, placement: Placement) -> None:
    """Set this process up for the engine of `spec`; of the rest, what the user has set stays as it is."""
    os.environ.update(required_environment(spec))
    for name, value in preferred_environment(spec).items():
        os.environ.setdefault(name, value)
    if placement.core is not None:
        # Threads inherit their creator's cores, and vLLM's are yet to be created. Left to itself
        # every CPU engine takes core 0.
        os.sched_setaffinity(0, {placement.core})


def required_environment(spec: EngineSpec) -> dict[str, str]:
    """Return the variables that the tokens of `spec`'s engine rest on, whatever the user's shell says."""
    if spec.device == "cpu":
        # One thread per engine is what makes a batch's size invisible in its tokens.
        variables = {"VLLM_CPU_OMP_THREADS_BIND": "nobind", "OMP_NUM_THREADS": "1"}
        # The padded GEMM and what keeps adapters off other rows are this process's own: a core in
        # another would compute without them.
        is_own = spec.determinism == "strict" or bool(spec.adapters)
        return variables | ({_IN_PROCESS: "0"} if is_own else {})
    # Written out also where it is off: left over in a shell, it would change a fast run's tokens.
    return {"VLLM_BATCH_INVARIANT": "1" if spec.determinism == "strict" else "0"}


def preferred_environment(spec: EngineSpec) -> dict[str, str]:
    """Return the variables that `spec`'s engine gets where the user has not set them."""
    variables = {**PRIVACY, "VLLM_LOGGING_LEVEL": "INFO", "TOKENIZERS_PARALLELISM": "false"}
    if spec.model.path is not None:
        variables["HF_HUB_OFFLINE"] = "1"  # All files are there; asking the Hub only costs time.
    if spec.device == "cpu":
        # Weights in huge pages where the system grants them on request.
        variables["THP_MEM_ALLOC_ENABLE"] = "1"
        # In one process an engine starts in a third of the time, at the same speed.
        variables[_IN_PROCESS] = "0"
        if not compiles(spec):
            # Some functions vLLM compiles all the same, with a C++ compiler, when they are first called.
            variables["TORCHDYNAMO_DISABLE"] = "1"
    return variables


def compiles(spec: EngineSpec) -> bool:
    """Whether the engine of `spec` compiles its model: on CPUs only where the user says so."""
    return spec.device != "cpu" or not spec.settings.get("enforce_eager", True)
