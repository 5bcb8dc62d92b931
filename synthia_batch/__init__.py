"""Turn a file of prompts into a finished dataset with vLLM in Ray workers.

from synthia_batch import Job, run_job

result = run_job(Job(input={"path": "questions.parquet"}))
"""

from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"
__all__ = ["Job", "RunResult", "run_job"]

if TYPE_CHECKING:
    from synthia_batch.job.declared import Job
    from synthia_batch.result import RunResult
    from synthia_batch.run import run_job

_HOMES = {
    "Job": "synthia_batch.job.declared",
    "RunResult": "synthia_batch.result",
    "run_job": "synthia_batch.run",
}


def __getattr__(name: str) -> Any:
    """Import a public name when it is first asked for, so that `--help` loads none of them."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(_HOMES[name]), name)
