"""What must stand in a process before vllm is imported there: its environment and its core."""

import os

from synthia_batch.engine.seat import Seat
from synthia_batch.job.resolved import EngineSpec
from synthia_batch.privacy import PRIVACY as PRIVACY  # pool/ray_pool takes it from here


def prepare_environment(spec: EngineSpec, seat: Seat) -> None:
    """Set this process up for the engine of `spec`; what the user has set stays as it is."""
    for name, value in environment_of(spec).items():
        os.environ.setdefault(name, value)
    if seat.core is not None:
        # Threads inherit their creator's cores, and vLLM's are yet to be created. Left to itself
        # every CPU engine takes core 0.
        os.sched_setaffinity(0, {seat.core})


def environment_of(spec: EngineSpec) -> dict[str, str]:
    """Return the variables that the engine of `spec` wants."""
    variables = {**PRIVACY, "VLLM_LOGGING_LEVEL": "INFO", "TOKENIZERS_PARALLELISM": "false"}
    if spec.model.path is not None:
        variables["HF_HUB_OFFLINE"] = "1"  # All files are there; asking the Hub only costs time.
    if spec.device == "cpu":
        # In one process an engine starts in a third of the time, at the same speed. One thread
        # per engine is also what makes a batch's size invisible in its tokens.
        variables |= {
            "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
            "VLLM_CPU_OMP_THREADS_BIND": "nobind",
            "OMP_NUM_THREADS": "1",
        }
    elif spec.determinism == "strict":
        variables["VLLM_BATCH_INVARIANT"] = "1"
    return variables
