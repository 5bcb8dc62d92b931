"""vLLM's own batch command, on a file in OpenAI's batch format."""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

from benchmarks.throughput.process import Ended, python_command
from benchmarks.throughput.sides.base import Answer, Command, NotRun, Reading
from benchmarks.throughput.workload import Workload
from synthia_batch.core.hardware import list_cores

KV_CACHE_BYTES = 3 * 2**30
"""Of each engine on CPUs, about what synthia-batch gives its own on 24 GB. Left to itself, vLLM takes what
it believes to be free, and fails where it is not."""
_BAR = re.compile(r"(\d+)/(\d+) \[")
_FLAGS: Mapping[str, Sequence[str]] = {
    "plain": (),
    # Compiling costs more time than it saves in a job of minutes.
    "eager": ("--enforce-eager",),
    "two engines": ("--enforce-eager", "--data-parallel-size", "2"),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class RunBatch:
    """Implements `Side`."""

    variant: Literal["plain", "eager", "two engines"]

    @property
    def name(self) -> str:
        """The command and how it is set up."""
        return f"run_batch, {self.variant}"

    @property
    def note(self) -> str:
        """What it had to be told."""
        flags = " ".join(_FLAGS[self.variant]) or "no flags"
        return f"{flags}; on CPUs no chunked prefill, with which seeded sampling ends vLLM's engine there"

    def select(self, workload: Workload) -> Workload:
        """All of it; the second engine only where there is something to run it on."""
        if self.variant == "two engines" and workload.workers != 2:
            raise NotRun("for two CPU cores or two GPUs")
        return workload

    def prepare(self, workload: Workload, directory: Path) -> Command:
        """Write the batch file."""
        with (directory / "batch.jsonl").open("w", encoding="utf-8") as file:
            for prompt in workload.prompts:
                sampling = workload.engine.sampling
                body = {
                    "model": str(workload.model),
                    "messages": [asdict(message) for message in prompt.messages],
                    "max_tokens": workload.max_tokens,
                    "seed": prompt.seed,
                    "temperature": sampling.temperature,
                    "top_p": sampling.top_p,
                    "top_k": sampling.top_k,
                }
                request = {
                    "custom_id": prompt.id,
                    "method": "POST",
                    "url": "/v1/chat/completions",
                    "body": body,
                }
                file.write(json.dumps(request) + "\n")
        length = workload.engine.max_model_len
        flags = ["--model", workload.model, "--max-model-len", length, *_FLAGS[self.variant]]
        environment: dict[str, str] = {}
        if workload.engine.device == "cpu":
            flags += ["--no-enable-chunked-prefill", "--max-num-batched-tokens", max(length, 2048)]
            flags += ["--kv-cache-memory-bytes", KV_CACHE_BYTES]
            if self.variant == "two engines":
                # Left to itself each engine takes the same core.
                environment["VLLM_CPU_OMP_THREADS_BIND"] = "|".join(map(str, list_cores()[:2]))
        if workload.is_dummy:
            flags += ["--load-format", "dummy"]
        files = ("-i", directory / "batch.jsonl", "-o", directory / "answers.jsonl")
        module = "vllm.entrypoints.openai.run_batch"
        return Command(arguments=python_command(module, *files, *map(str, flags)), environment=environment)

    def find_first(self, directory: Path) -> bool:
        """Its bar tells, on stderr."""
        return False

    def read(self, workload: Workload, directory: Path, ended: Ended) -> Reading:
        """Times come from what it prints: `Reading batch` once its engine is there, then a bar."""
        by_id = {}
        for line in (directory / "answers.jsonl").read_text(encoding="utf-8").splitlines():
            record = json.loads(line)
            if record.get("error") or record["response"]["status_code"] != 200:
                raise ValueError(f"{record['custom_id']}: {record.get('error') or record['response']}")
            body = record["response"]["body"]
            by_id[record["custom_id"]] = Answer(
                prompt_tokens=body["usage"]["prompt_tokens"],
                tokens=body["usage"]["completion_tokens"],
                text=body["choices"][0]["message"]["content"],
            )
        whole = len(workload.prompts)
        ready = ended.find_time("Reading batch from")
        # vLLM draws other bars while it loads.
        bars = [(when, *map(int, found)) for when, piece in ended.said for found in _BAR.findall(piece)]
        bar = [(when, done) for when, done, total in bars if total == whole and when >= (ready or 0)]
        return Reading(
            answers=[by_id[prompt.id] for prompt in workload.prompts],
            ready=ready,
            first=next((when for when, done in bar if done), None),
            last=next((when for when, done in bar if done >= whole), None),
        )
