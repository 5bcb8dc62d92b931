"""Proves on this machine's GPU what the README promises, in under ten minutes: `make gpu-check`.

    python -m benchmarks.gpu_check                          # all steps
    python -m benchmarks.gpu_check --only 0,1,3             # some of them
    make gpu-check DEVICE=cpu                               # small numbers on CPUs: finds faults of the check

Every step is a process with a time limit of its own. Its result is a line of JSON, and the file with all
of them is rewritten after each step, so that nothing is lost if the machine is. A dated Markdown file
follows at the end. Exits with 0 only if every "must" of every step holds.
"""

import argparse
import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import date
from pathlib import Path
from typing import Any

from benchmarks.gpu_steps import bare, batches, jobs, machine, memory, speed
from benchmarks.gpu_steps.base import MARK, Result, Setting
from benchmarks.gpu_steps.models import LLAMA_2_7B, SMOLLM2_135M, make_shape
from benchmarks.throughput.machine import describe_machine
from synthia_batch.core.hardware import detect_device, name_driver
from synthia_batch.models.demo import prepare_demo_model
from synthia_batch.workers.pools.process_tree import list_descendants

RESULTS = Path(__file__).parent / "results"


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """One step and its time limit in seconds on a GPU; a rehearsal on CPUs has six times as much."""

    number: int
    title: str
    limit_seconds: int
    check: Callable[[Setting], Result]


STEPS = (
    Step(number=0, title="preflight", limit_seconds=90, check=machine.check_machine),
    Step(number=1, title="small, strict, resumed, verified", limit_seconds=150, check=jobs.run_strict),
    Step(number=2, title="two engines on one GPU, killed", limit_seconds=240, check=jobs.run_killed),
    Step(number=3, title="batches of all sizes, strict", limit_seconds=200, check=batches.compare_batches),
    Step(number=4, title="too little memory", limit_seconds=400, check=memory.run_short_of_memory),
    Step(number=5, title="two engines against one", limit_seconds=150, check=jobs.compare_two_engines),
    Step(number=6, title="AWQ", limit_seconds=240, check=jobs.run_awq),
    Step(number=7, title="bare engines, batch invariant", limit_seconds=400, check=bare.compare_bare_engines),
    Step(number=8, title="large: LLM.generate, fast, strict", limit_seconds=500, check=speed.compare_speed),
    Step(number=9, title="fast at batch 8 against strict", limit_seconds=90, check=batches.compare_fast),
)


def main() -> None:
    """Run the steps, or with --step one of them."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto")
    parser.add_argument("--only", help="numbers of steps: 0,1,3")
    parser.add_argument("--work", type=Path, help="where models, runs and logs go [a temporary directory]")
    parser.add_argument("-o", "--output", type=Path, default=RESULTS, help="where the result goes")
    parser.add_argument("--step", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--result", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.step is not None:
        _run_here(options.step, options.work, options.result)
        return
    device = detect_device() if options.device == "auto" else options.device
    chosen = {int(number) for number in options.only.split(",")} if options.only else None
    steps = [step for step in STEPS if chosen is None or step.number in chosen]
    work = options.work or Path(tempfile.mkdtemp(prefix="gpu-check-"))
    setting = prepare(device, work)
    stem = f"{date.today().isoformat()}-gpu-check-{device}"
    options.output.mkdir(parents=True, exist_ok=True)
    lines = run_steps(steps, setting, options.output / f"{stem}.jsonl")
    (options.output / f"{stem}.md").write_text(describe(lines, setting))
    print(f"{options.output / f'{stem}.md'}; logs: {work / 'logs'}")
    sys.exit(0 if all(line["holds"] for line in lines) else 1)


def prepare(device: Any, work: Path) -> Setting:
    """Make the models and return the setting; keep it in `work` for the steps."""
    (work / "logs").mkdir(parents=True, exist_ok=True)
    try:
        small, is_dummy = prepare_demo_model(), False
    except Exception as exc:  # Its package is not installed: random weights of its shape do, too.
        print(f"no embedded model ({type(exc).__name__}): random weights of its shape", file=sys.stderr)
        small, is_dummy = make_shape(work / "small", SMOLLM2_135M), True
    on_gpu = device == "cuda"
    setting = Setting(
        device=device,
        work=str(work),
        small=str(small),
        large=str(make_shape(work / "large", LLAMA_2_7B)),
        is_dummy=is_dummy,
        rows=1024 if on_gpu else 20,
        new_tokens=128 if on_gpu else 8,
        kill_after=100 if on_gpu else 4,
        batches=(1, 2, 7, 40, 128, 256) if on_gpu else (1, 2, 7),
        batch_prompts=256 if on_gpu else 9,
        longest_prompt=800 if on_gpu else 32,
        large_prompts=2048 if on_gpu else 16,
        large_tokens=256 if on_gpu else 16,
    )
    (work / "setting.json").write_text(json.dumps(asdict(setting)))
    return setting


def run_steps(steps: Sequence[Step], setting: Setting, path: Path) -> list[dict[str, Any]]:
    """Run each of `steps` and return their lines, which `path` has after each of them."""
    lines = []
    for step in steps:
        print(f"step {step.number}, {step.title} ...", end=" ", file=sys.stderr, flush=True)
        line = run_step(step, setting)
        lines.append(line)
        path.write_text("".join(f"{json.dumps(one)}\n" for one in lines))
        said = "holds" if line["holds"] else f"FAILS: {', '.join(list_broken(line))}"
        print(f"{line['seconds']} s, {said}", file=sys.stderr)
    return lines


def run_step(step: Step, setting: Setting) -> dict[str, Any]:
    """Run `step` in a process, end it and what it has started at its limit, and return its line."""
    result = setting.directory / f"step-{step.number}.json"
    result.unlink(missing_ok=True)
    limit = setting.allow(step.limit_seconds)
    command = [sys.executable, "-m", "benchmarks.gpu_check", "--step", str(step.number)]
    command += ["--work", setting.work, "--result", str(result)]
    began = time.monotonic()
    with (setting.directory / "logs" / f"step-{step.number}.log").open("wb") as log:
        environment = {**os.environ, MARK: setting.work}
        child = subprocess.Popen(
            command, stdout=log, stderr=log, cwd=Path(__file__).parents[1], env=environment
        )
        try:
            code = child.wait(limit)
        except subprocess.TimeoutExpired:
            for pid in [child.pid, *list_descendants(child.pid)]:
                with contextlib.suppress(OSError):
                    os.kill(pid, signal.SIGKILL)
            code = child.wait()
    found: dict[str, Any] = {"must": {}, "numbers": {}, "skipped": []}
    if result.exists():
        found = json.loads(result.read_text())
    else:
        seconds = time.monotonic() - began
        found["must"][f"ends within {limit} s" if seconds >= limit else f"ends with 0, not {code}"] = False
    holds = all(found["must"].values())
    seconds = round(time.monotonic() - began, 1)
    return {"step": step.number, "title": step.title, "holds": holds, "seconds": seconds, **found}


def _run_here(number: int, work: Path, result: Path) -> None:
    values = json.loads((work / "setting.json").read_text())
    setting = Setting(**{**values, "batches": tuple(values["batches"])})
    found = next(step for step in STEPS if step.number == number).check(setting)
    result.write_text(json.dumps(asdict(found)))


def list_broken(line: Mapping[str, Any]) -> list[str]:
    """Return what must hold in a step and does not."""
    return [name for name, holds in line["must"].items() if not holds]


def describe(lines: Sequence[Mapping[str, Any]], setting: Setting) -> str:
    """Return the result as Markdown: the machine, the verdict, every must and every number."""
    verdict = "every must holds" if all(line["holds"] for line in lines) else "NOT every must holds"
    seconds = sum(line["seconds"] for line in lines)
    facts = {**describe_machine(), "driver": name_driver() or "none"}
    model = "random weights of SmolLM2-135M's shape" if setting.is_dummy else "the embedded model"
    text = [
        f"# gpu-check on {setting.device}, {date.today().isoformat()}: {verdict}",
        "",
        f"{len(lines)} of {len(STEPS)} steps, {seconds:.0f} s; S: {model}, {setting.rows} rows.",
    ]
    if setting.is_rehearsal:
        text.append("A rehearsal on CPUs with small numbers: it tests the check and no GPU.")
    text += ["", *(f"- {name}: {value}" for name, value in facts.items()), ""]
    for line in lines:
        state = "holds" if line["holds"] else "FAILS"
        text += [f"## {line['step']}. {line['title']}: {state}, {line['seconds']} s", ""]
        text += [f"- {'holds' if holds else 'FAILS'}: {name}" for name, holds in line["must"].items()]
        text += [f"- left out: {what}" for what in line["skipped"]]
        text += [f"- {name}: {json.dumps(value)}" for name, value in line["numbers"].items()]
        text.append("")
    return "\n".join(text)


if __name__ == "__main__":
    main()
