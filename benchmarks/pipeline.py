"""What a pipeline costs: the step from stage to stage, and the whole beside what a user would do otherwise.

    python -m benchmarks.pipeline step --rows 1000             # scripted engine, under a minute
    python -m benchmarks.pipeline whole --rows 256 --rounds 3  # embedded model, an hour on two slow cores

`step` is the time from the last published sample of a stage to the moment when the next one has its engines:
report, manifest, the samples read again as rows, plan, engines kept. `whole` runs generate and judge, once as
a pipeline, once as two calls of vLLM's `run_batch` with a script between them, in turn; whole processes.
"""

import argparse
import json
import statistics
import sys
import tempfile
from collections.abc import Mapping, Sequence
from datetime import date, datetime
from pathlib import Path
from typing import Any

from benchmarks.prefix import make_text
from benchmarks.throughput.machine import describe_machine
from benchmarks.throughput.process import python_command, run_process
from benchmarks.throughput.sides.run_batch import KV_CACHE_BYTES
from synthia_batch.models.demo import prepare_demo_model

TIMEOUT_SECONDS = 3 * 3600
MODEL_LEN = 2048
LOADED = "Starting to load model"
"""What vLLM logs when it loads a model."""
JUDGE = "Question: {question}\nAnswer: {answer}\nRate the answer from 0 to 10 with a number."


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("part", choices=("step", "whole"))
    parser.add_argument("--rows", type=int, default=256)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--max-tokens", type=int, default=32, help="of an answer [32]")
    parser.add_argument("--dtype", default="auto", help="such as float32 where bfloat16 is slow [auto]")
    parser.add_argument("-o", "--output", type=Path, help="the table [standard output]")
    options = parser.parse_args()
    table = measure_steps(options) if options.part == "step" else measure_wholes(options)
    machine = [f"- {name}: {value}" for name, value in describe_machine().items()]
    head = f"# Pipelines, {date.today().isoformat()}"
    command = f"`python -m benchmarks.pipeline {' '.join(sys.argv[1:])}`"
    text = "\n".join([head, "", command, "", *machine, "", *table, ""])
    if options.output:
        options.output.write_text(text)
    else:
        print(text)


def measure_steps(options: argparse.Namespace) -> list[str]:
    """Return the table of steps between two stages of the scripted engine."""
    seconds = []
    for _ in range(options.rounds):
        with tempfile.TemporaryDirectory(prefix="pipeline-") as folder:
            file = write_pipeline(Path(folder), options, {"kind": "scripted"})
            run_ours(file, Path(folder) / "out")
            answer, judge = (read_events(Path(folder) / "out", stage) for stage in ("answer", "judge"))
            seconds.append(find_time(judge, "worker_ready") - find_time(answer, "shard_published"))
    shown = ", ".join(f"{one:.2f}" for one in seconds)
    return [
        "| samples of each stage | seconds from stage to stage, median (all) | at most |",
        "|---|---|---|",
        f"| {options.rows} | {statistics.median(seconds):.2f} ({shown}) | 1 |",
    ]


def measure_wholes(options: argparse.Namespace) -> list[str]:
    """Return the table of whole times of the pipeline and of two batches."""
    seconds: dict[str, list[float]] = {"pipeline": [], "two run_batch": []}
    loads: set[int] = set()
    for _ in range(options.rounds):
        with tempfile.TemporaryDirectory(prefix="pipeline-") as folder:
            file = write_pipeline(Path(folder), options, {"kind": "vllm"})
            seconds["pipeline"].append(run_ours(file, Path(folder) / "out"))
            loads.add(count_loads(Path(folder) / "out"))
            print(f"pipeline: {seconds['pipeline'][-1]:.1f} s", file=sys.stderr)
            seconds["two run_batch"].append(run_batches(Path(folder), options))
            print(f"two run_batch: {seconds['two run_batch'][-1]:.1f} s", file=sys.stderr)
    middle = {side: statistics.median(ones) for side, ones in seconds.items()}
    lines = ["| side | seconds, median (all) | pipeline beside it | at most |", "|---|---|---|---|"]
    for side, ones in seconds.items():
        shown = ", ".join(f"{one:.0f}" for one in ones)
        ratio, most = middle["pipeline"] / middle[side], "0.40" if side == "two run_batch" else ""
        lines.append(f"| {side} | {middle[side]:.0f} ({shown}) | {ratio:.2f} | {most} |")
    counted = ", ".join(map(str, sorted(loads)))
    return [*lines, "", f"Models loaded by a pipeline: {counted} (one for each engine)."]


def write_pipeline(folder: Path, options: argparse.Namespace, engine: Mapping[str, Any]) -> Path:
    """Write a pipeline that answers and judges, and its input; return the job file."""
    rows = [{"question": question} for question in make_questions(options.rows)]
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "judge.jinja").write_text(
        JUDGE.format(question="{{ question }}", answer="{{ answer.response }}")
    )
    stages = [
        {"name": "answer", "sampling": {"max_tokens": options.max_tokens}},
        {
            "name": "judge",
            "input": {"prompt_template": "judge.jinja"},
            "sampling": {"max_tokens": 8, "temperature": 0.0},
        },
    ]
    whole = {
        "name": "bench",
        "model": {"name": str(prepare_demo_model()), "dtype": options.dtype, "max_model_len": MODEL_LEN},
        "input": {"path": "rows.jsonl", "keep_columns": ["question"]},
        "system": ["none"],
        "engine": engine,
        "pool": {"kind": "local"} if engine["kind"] == "scripted" else {},
        "stages": stages,
    }
    if engine["kind"] == "scripted":
        whole.pop("model")
    (folder / "bench.yaml").write_text(json.dumps(whole))
    return folder / "bench.yaml"


def make_questions(rows: int) -> list[str]:
    return [f"{n}: {make_text(20, f'question {n}')} What follows?" for n in range(rows)]


def run_ours(file: Path, directory: Path) -> float:
    """Return the seconds that `run` takes."""
    return run(python_command("synthia_batch", "run", file, "-o", directory, "-q"))


def run_batches(folder: Path, options: argparse.Namespace) -> float:
    """Return the seconds that two batches take, one of them written from the answers of the other."""
    model, questions = prepare_demo_model(), make_questions(options.rows)
    bodies = [{"max_tokens": options.max_tokens, "seed": n, "temperature": 0.75} for n in range(options.rows)]
    seconds = run(write_batch(folder / "answer", model, questions, bodies, options.dtype))
    answers = [
        json.loads(line)["response"]["body"]["choices"][0]["message"]["content"]
        for line in (folder / "answer" / "answers.jsonl").read_text().splitlines()
    ]
    judged = [JUDGE.format(question=one, answer=other) for one, other in zip(questions, answers, strict=True)]
    short = [{"max_tokens": 8, "temperature": 0.0}] * options.rows
    return seconds + run(write_batch(folder / "judge", model, judged, short, options.dtype))


def write_batch(
    folder: Path, model: Path, prompts: Sequence[str], bodies: Sequence[dict[str, Any]], dtype: str
) -> list[str]:
    """Write a batch file into `folder`; return the command that answers it."""
    folder.mkdir()
    with (folder / "batch.jsonl").open("w") as file:
        for n, (prompt, body) in enumerate(zip(prompts, bodies, strict=True)):
            asked = {"model": str(model), "messages": [{"role": "user", "content": prompt}]} | body
            request = {"custom_id": str(n), "method": "POST", "url": "/v1/chat/completions", "body": asked}
            file.write(json.dumps(request) + "\n")
    # On CPUs no chunks, with which seeded sampling ends vLLM's engine there.
    flags = ["--model", model, "--max-model-len", MODEL_LEN, "--dtype", dtype, "--no-enable-chunked-prefill"]
    flags += ["--max-num-batched-tokens", MODEL_LEN, "--kv-cache-memory-bytes", KV_CACHE_BYTES]
    files = ("-i", folder / "batch.jsonl", "-o", folder / "answers.jsonl")
    return python_command("vllm.entrypoints.openai.run_batch", *files, *flags)


def run(command: Sequence[str]) -> float:
    """Return the seconds of a whole process."""
    ended = run_process(command, {}, lambda: False, TIMEOUT_SECONDS)
    if ended.code:
        sys.exit(f"{' '.join(command)}: exit code {ended.code}\n{ended.tail(30)}")
    return ended.seconds


def read_events(directory: Path, stage: str) -> list[dict[str, Any]]:
    """Return the events of a stage's run, in order."""
    (path,) = directory.glob(f"stages/{stage}-*/.synthia/events.jsonl")
    return [json.loads(line) for line in path.read_text().splitlines()]


def find_time(events: Sequence[Mapping[str, Any]], kind: str) -> float:
    """Return when the last event of `kind` was, in seconds since 1970."""
    return max(datetime.fromisoformat(event["time"]).timestamp() for event in events if event["kind"] == kind)


def count_loads(directory: Path) -> int:
    """Return how many models the pipeline's engines loaded, by their logs."""
    logs = [path for path in directory.glob("stages/*/.synthia/**/*.log") if path.is_file()]
    return sum(path.read_text(errors="replace").count(LOADED) for path in logs)


if __name__ == "__main__":
    main()
