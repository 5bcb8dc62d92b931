"""The limit: one Ray actor per engine and nothing else. No files, no restarts, no journal.

    python -m benchmarks.throughput.sides.bare_actors DIRECTORY DETERMINISM

The engines get the arguments and the process that synthia-batch gives to its own. Every prompt is
handed over at once, as token ids, each engine's share to itself. In fast determinism they are vLLM as it
is; in strict their arithmetic and their draws are synthia-batch's, so that what is left is the price of
its run.
"""

import json
import os
import sys
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from benchmarks.throughput.process import Ended, python_command
from benchmarks.throughput.sides.base import Answer, Command, Reading
from benchmarks.throughput.workload import Workload
from synthia_batch.job.schema import Determinism


@dataclass(frozen=True, slots=True, kw_only=True)
class BareActors:
    """Implements `Side`."""

    determinism: Determinism

    @property
    def name(self) -> str:
        """Bare means: as fast as these engines go."""
        return "bare actors" if self.determinism == "fast" else "bare actors, strict"

    @property
    def note(self) -> str:
        """What its engines are like."""
        if self.determinism == "strict":
            return "the limit of synthia-batch's engine: its arithmetic and its draws; no files, no detours"
        like = "engine arguments, pinning and seeds are `--determinism fast`'s"
        return f"vLLM as it is; {like}; no files, no detours"

    def select(self, workload: Workload) -> Workload:
        """All of it."""
        return workload

    def prepare(self, workload: Workload, directory: Path) -> Command:
        """It gets its prompts as token ids, in a file that it reads at its start."""
        workload.save(directory / "workload")
        module = "benchmarks.throughput.sides.bare_actors"
        return Command(arguments=python_command(module, directory, self.determinism))

    def find_first(self, directory: Path) -> bool:
        """It keeps its own times."""
        return False

    def read(self, workload: Workload, directory: Path, ended: Ended) -> Reading:
        """Read what the engines said at the end."""
        parts = json.loads((directory / "result.json").read_text())
        answers = sorted((answer for part in parts for answer in part["answers"]), key=lambda a: a["place"])
        return Reading(
            answers=[Answer.from_dict(record) for record in answers],
            ready=min(part["ready"] for part in parts),
            first=min(a["time"] for a in answers),
            last=max(a["time"] for a in answers),
        )


def main(directory: Path, determinism: Determinism) -> None:
    import ray

    workload = Workload.load(directory / "workload")
    on_gpu = workload.engine.device == "cuda"
    ray.init(
        "local",
        num_cpus=max(workload.workers, len(os.sched_getaffinity(0))),
        include_dashboard=False,
        log_to_driver=True,
        object_store_memory=128 * 2**20,
    )
    actor: Any = ray.remote(BareEngine).options(num_cpus=1, num_gpus=1 if on_gpu else 0)
    engines = [actor.remote() for _ in range(workload.workers)]
    calls = [
        engine.generate.remote(directory / "workload", n, determinism) for n, engine in enumerate(engines)
    ]
    (directory / "result.json").write_text(json.dumps(ray.get(calls)))


class BareEngine:
    """One engine in a process of its own."""

    def generate(self, path: Path, number: int, determinism: Determinism) -> dict[str, Any]:
        """Return the answers to this engine's share of the prompts, and when each was finished."""
        from synthia_batch.workers.engine import Placement
        from synthia_batch.workers.environment import prepare_environment
        from synthia_batch.workers.vllm.arguments import engine_arguments, sampling_arguments

        workload = Workload.load(path)
        spec = replace(workload.engine, determinism=determinism)
        placement = Placement()
        if spec.device == "cpu":
            cores = sorted(os.sched_getaffinity(0))
            placement = Placement(core=cores[number % len(cores)], neighbours=workload.workers)
        prepare_environment(spec, placement)

        from vllm import LLM, SamplingParams
        from vllm.inputs import tokens_input
        from vllm.sampling_params import RequestOutputKind

        from synthia_batch.workers.vllm.batch_invariance import make_gemms_batch_invariant
        from synthia_batch.workers.vllm.sampler import patch_sampler

        if spec.device == "cpu" and determinism == "strict":
            make_gemms_batch_invariant()
            patch_sampler()
        engine: Any = LLM(**engine_arguments(spec, placement)).llm_engine
        ready = time.time()
        mine = range(number, len(workload.prompts), workload.workers)
        for place in mine:
            prompt = workload.prompts[place]
            params = SamplingParams(
                **sampling_arguments(spec.sampling),
                max_tokens=prompt.max_tokens,
                seed=prompt.seed,
                output_kind=RequestOutputKind.FINAL_ONLY,
            )
            engine.add_request(str(place), tokens_input(list(prompt.token_ids)), params)
        answers: list[dict[str, Any]] = []
        while engine.has_unfinished_requests():
            for output in engine.step():
                if output.finished:
                    place, answer = int(output.request_id), output.outputs[0]
                    answers.append(
                        {
                            "place": place,
                            "prompt_tokens": len(workload.prompts[place].token_ids),
                            "tokens": len(answer.token_ids),
                            "text": answer.text,
                            "time": time.time(),
                        }
                    )
        return {"ready": ready, "answers": answers}


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2])  # type: ignore[arg-type]
