"""Ray Data's LLM processor.

python -m benchmarks.throughput.sides.ray_data DIRECTORY VARIANT
"""

import json
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from benchmarks.throughput.process import Ended, python_command
from benchmarks.throughput.sides.base import Answer, Command, NotRun, Reading
from benchmarks.throughput.sides.run_batch import KV_CACHE_BYTES
from benchmarks.throughput.workload import Workload
from synthia_batch.core.hardware import list_cores

SLOTS = 16
"""CPUs that Ray is told of: each stage's actor takes one, and with too few it waits without a word."""
Variant = Literal["concurrency 1", "concurrency 2"]


@dataclass(frozen=True, slots=True, kw_only=True)
class RayData:
    """Implements `Side`."""

    variant: Variant

    @property
    def name(self) -> str:
        """The library and its number of engines."""
        return f"Ray Data LLM, {self.variant}"

    @property
    def note(self) -> str:
        """What it had to be told."""
        if self.variant == "concurrency 1":
            return "one engine on all cores; eager; its default batches"
        return "one thread per engine, unpinned: vLLM binds both to one core; eager; its default batches"

    def select(self, workload: Workload) -> Workload:
        """All of it."""
        if self.variant == "concurrency 2" and workload.workers < 2:
            raise NotRun("one GPU has room for one engine")
        return workload

    def prepare(self, workload: Workload, directory: Path) -> Command:
        """It reads the conversations from the workload."""
        workload.save(directory / "workload")
        environment = {}
        if workload.engine.device == "cpu" and self.variant == "concurrency 2":
            environment = {"VLLM_CPU_OMP_THREADS_BIND": "nobind", "OMP_NUM_THREADS": "1"}
        module = "benchmarks.throughput.sides.ray_data"
        return Command(arguments=python_command(module, directory, self.variant), environment=environment)

    def find_first(self, directory: Path) -> bool:
        """vLLM tells, in each row's metrics."""
        return False

    def read(self, workload: Workload, directory: Path, ended: Ended) -> Reading:
        """Rows come in any order; their times are vLLM's own."""
        rows = sorted(json.loads((directory / "result.json").read_text()), key=lambda row: row["place"])
        return Reading(
            answers=[Answer.from_dict(record) for record in rows],
            ready=min((r["queued"] for r in rows if r["queued"]), default=None),
            first=min((r["finished"] for r in rows if r["finished"]), default=None),
            last=max((r["finished"] for r in rows if r["finished"]), default=None),
        )


def main(directory: Path, variant: Variant) -> None:
    import ray
    import ray.data
    from ray.data.llm import build_processor, vLLMEngineProcessorConfig

    workload = Workload.load(directory / "workload")
    environment = _environment()
    ray.init("local", num_cpus=SLOTS, include_dashboard=False, runtime_env={"env_vars": environment})
    engines = int(variant[-1])
    settings: dict[str, Any] = {}
    if workload.engine.device == "cpu":
        # Without a word of CPUs it waits for a GPU. Ray gives each engine as many threads as CPUs.
        cpus = max(1, len(list_cores()) // engines)
        settings["placement_group_config"] = {"bundle_per_worker": {"CPU": cpus}}
    config = vLLMEngineProcessorConfig(
        model_source=str(workload.model),
        engine_kwargs=_engine_arguments(workload),
        concurrency=engines,
        log_engine_metrics=False,  # vLLM's wrapper of Ray's metrics does not load everywhere
        **settings,
    )
    processor = build_processor(
        config,
        preprocess=_RowMaker(workload),
        postprocess=_read_row,
    )
    rows = [
        {"place": place, "seed": prompt.seed, "messages": [asdict(message) for message in prompt.messages]}
        for place, prompt in enumerate(workload.prompts)
    ]
    done = processor(ray.data.from_items(rows)).take_all()
    (directory / "result.json").write_text(json.dumps(done))


class _RowMaker:
    """Adds the sampling parameters to a row."""

    def __init__(self, workload: Workload) -> None:
        sampling = workload.engine.sampling
        self._params = {
            "temperature": sampling.temperature,
            "top_p": sampling.top_p,
            "top_k": sampling.top_k,
            "max_tokens": workload.max_tokens,
        }

    def __call__(self, row: dict[str, Any]) -> dict[str, Any]:
        """Return the row as the processor wants it."""
        return {
            "place": row["place"],
            "messages": row["messages"],
            "sampling_params": {**self._params, "seed": int(row["seed"])},
        }


def _read_row(row: dict[str, Any]) -> dict[str, Any]:
    """Return what is compared. vLLM's times are on the monotonic clock of this machine."""
    since = time.time() - time.monotonic()
    metrics = row.get("metrics") or {}
    queued, finished = metrics.get("queued_ts"), metrics.get("last_token_ts")
    return {
        "place": row["place"],
        "prompt_tokens": row["num_input_tokens"],
        "tokens": row["num_generated_tokens"],
        "text": row["generated_text"],
        "queued": queued and queued + since,
        "finished": finished and finished + since,
    }


def _engine_arguments(workload: Workload) -> dict[str, Any]:
    arguments: dict[str, Any] = {
        "max_model_len": workload.engine.max_model_len,
        "dtype": workload.engine.dtype,
    }
    if workload.is_dummy:
        arguments["load_format"] = "dummy"
    if workload.engine.device == "cpu":
        arguments |= {
            "enforce_eager": True,
            "enable_chunked_prefill": False,
            "max_num_batched_tokens": max(workload.engine.max_model_len, 2048),
            "max_num_seqs": 256,
            "kv_cache_memory_bytes": KV_CACHE_BYTES,
        }
    return arguments


def _environment() -> dict[str, str]:
    import os

    from synthia_batch.core.telemetry import PRIVACY

    names = (*PRIVACY, "VLLM_CPU_OMP_THREADS_BIND", "OMP_NUM_THREADS", "HF_HUB_OFFLINE")
    return {name: os.environ[name] for name in names if name in os.environ}


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2])  # type: ignore[arg-type]
