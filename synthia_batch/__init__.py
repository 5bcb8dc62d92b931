"""Turn a file of prompts into a finished dataset with vLLM in Ray workers.

from synthia_batch import Job, open_run, run_job

result = run_job(Job(input={"path": "questions.parquet"}))
for sample in open_run(result.directory).samples():
    print(sample.response)
"""

from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"
__all__ = [
    "FailedSample",
    "FinishedSample",
    "Job",
    "PipelineResult",
    "Run",
    "RunResult",
    "RunStatistics",
    "Select",
    "SelectResult",
    "SynthiaBatchError",
    "open_run",
    "run_job",
    "run_stages",
    "select_samples",
]

if TYPE_CHECKING:
    from synthia_batch.core.errors import SynthiaBatchError
    from synthia_batch.job.schema import Job
    from synthia_batch.job.select import Select
    from synthia_batch.results.read.failures import FailedSample
    from synthia_batch.results.read.run import Run, RunStatistics, open_run
    from synthia_batch.results.read.samples import FinishedSample
    from synthia_batch.runner.monitoring.result import RunResult
    from synthia_batch.runner.pipeline import PipelineResult, run_stages
    from synthia_batch.runner.run import run_job
    from synthia_batch.runner.selection import SelectResult, select_samples

_HOMES = {
    "FailedSample": "synthia_batch.results.read.failures",
    "FinishedSample": "synthia_batch.results.read.samples",
    "Job": "synthia_batch.job.schema",
    "PipelineResult": "synthia_batch.runner.pipeline",
    "Run": "synthia_batch.results.read.run",
    "RunResult": "synthia_batch.runner.monitoring.result",
    "RunStatistics": "synthia_batch.results.read.run",
    "Select": "synthia_batch.job.select",
    "SelectResult": "synthia_batch.runner.selection",
    "SynthiaBatchError": "synthia_batch.core.errors",
    "open_run": "synthia_batch.results.read.run",
    "run_job": "synthia_batch.runner.run",
    "run_stages": "synthia_batch.runner.pipeline",
    "select_samples": "synthia_batch.runner.selection",
}


def __getattr__(name: str) -> Any:
    """Import a public name on first use, so that `--help` loads none of them."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    """Include the public names, for completion."""
    return sorted({*globals(), *__all__})
