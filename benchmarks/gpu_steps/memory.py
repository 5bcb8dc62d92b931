"""Step 4: too little memory, at load and while generating, and a context that cannot be."""

import subprocess
import sys
import time
from pathlib import Path

from benchmarks.gpu_steps.base import (
    Ended,
    Result,
    Setting,
    count_loads,
    make_environment,
    make_run,
    read_events,
    run,
)
from benchmarks.throughput.process import ROOT
from synthia_batch.core.hardware import list_gpu_memory
from synthia_batch.storage.layout import RunDir

MOST_LOADS = 3
FILLED = 0.45
"""Share of the card that another program takes before the engine loads."""
IMPOSSIBLE_TIMES = 16
"""An impossible KV cache, in times of the card's memory: it remains so when halved twice."""
ON_CPUS_BYTES = 10**15
CHUNK_BYTES = 2**26
TOO_SMALL_BYTES = 4 * 2**20
_FILLER = """
import sys, time, torch
blocks = []
try:
    for _ in range(int(sys.argv[1])):
        blocks.append(torch.empty(int(sys.argv[3]), dtype=torch.uint8, device="cuda"))
except torch.OutOfMemoryError:
    pass
print("took", len(blocks), "blocks", flush=True)
time.sleep(float(sys.argv[2]))
"""


def run_short_of_memory(setting: Setting) -> Result:
    """Step 4: impossible settings, a card filled by another, and memory taken while generating."""
    result = Result()
    _run_impossible_cache(setting, result)
    _run_impossible_context(setting, result)
    if setting.is_rehearsal:
        result.skipped.append("a card filled before and while generating: there is none")
        return result
    _run_filled(setting, result)
    _run_taken(setting, result)
    return result


def _run_impossible_cache(setting: Setting, result: Result) -> None:
    out = setting.directory / "impossible-cache"
    size = ON_CPUS_BYTES if setting.is_rehearsal else IMPOSSIBLE_TIMES * list_gpu_memory()[0]
    flags = ["--set", f"engine.kv_cache_memory_bytes={size}", "--workers", "1"]
    ended = run(
        make_run(setting, out, *flags, rows=8), setting.directory / "logs" / "4-cache.log", setting.allow(500)
    )
    if setting.is_rehearsal:  # On CPUs vLLM looks at the setting before it allocates.
        _judge_refusal(result, "an impossible KV cache", out, ended)
    else:
        _judge(result, "an impossible KV cache", out, ends=False, code=ended.code)


def _run_impossible_context(setting: Setting, result: Result) -> None:
    out = setting.directory / "impossible-context"
    flags = ["--set", f"engine.kv_cache_memory_bytes={TOO_SMALL_BYTES}", "--set", "model.max_model_len=2048"]
    command = make_run(setting, out, *flags, "--workers", "1", rows=8)
    ended = run(command, setting.directory / "logs" / "4-context.log", setting.allow(300))
    _judge_refusal(result, "an impossible context", out, ended)


def _judge_refusal(result: Result, name: str, out: Path, ended: Ended) -> None:
    """The setting is the user's: vLLM refuses it, and no second load is tried."""
    loads = count_loads(out)
    result.must[f"{name} is refused after one load"] = ended.code == 2 and loads <= 1
    result.must[f"{name}: no sample is convicted"] = not RunDir(out).failed.exists()
    result.numbers[name] = {"loads": loads, "exit": ended.code, "said": ended.output.splitlines()[-2:]}


def _run_filled(setting: Setting, result: Result) -> None:
    out = setting.directory / "filled"
    with (setting.directory / "logs" / "4-filler.log").open("wb") as log:
        filler = _fill(FILLED, 400, log)
        try:
            time.sleep(20)
            command = make_run(setting, out, "--workers", "1", rows=64)
            ended = run(command, setting.directory / "logs" / "4-filled.log", setting.allow(400))
        finally:
            filler.kill()
            filler.wait()
    _judge(result, "a card filled by another", out, ends=True, code=ended.code)


def _run_taken(setting: Setting, result: Result) -> None:
    """Take memory in the middle of a run whose engine has left little free."""
    out = setting.directory / "taken"
    flags = ["--workers", "1", "--determinism", "fast", "--set", "engine.gpu_memory_utilization=0.85"]
    flags += ["--set", "engine.enforce_eager=true"]
    with (setting.directory / "logs" / "4-taken.log").open("wb") as log:
        driver = subprocess.Popen(
            make_run(setting, out, *flags), cwd=ROOT, env=make_environment(), stdout=log, stderr=log
        )
        until = time.monotonic() + 200
        while time.monotonic() < until and driver.poll() is None and not _is_generating(out):
            time.sleep(0.2)
        filler = _fill(1.0, 60, log)  # As much as there is.
        try:
            code = driver.wait(300)
        except subprocess.TimeoutExpired:
            driver.kill()
            code = 124
        finally:
            filler.kill()
            filler.wait()
    _judge(result, "memory taken while generating", out, ends=True, code=code)


def _is_generating(out: Path) -> bool:
    return any(event.get("kind") == "progress" and event.get("samples") for event in read_events(out))


def _fill(share: float, seconds: int, log: object) -> "subprocess.Popen[bytes]":
    count = int(list_gpu_memory()[0] * share) // CHUNK_BYTES
    command = [sys.executable, "-c", _FILLER, str(count), str(seconds), str(CHUNK_BYTES)]
    return subprocess.Popen(command, env=make_environment(), stdout=log, stderr=log)  # type: ignore[call-overload, no-any-return]


def _judge(result: Result, name: str, out: Path, *, ends: bool, code: int) -> None:
    """`ends`: the run gets through in the end. Otherwise it must say why and convict nobody."""
    causes = [event.get("cause") for event in read_events(out) if event.get("kind") == "worker_lost"]
    loads = count_loads(out)
    failed = RunDir(out).failed.exists()
    result.numbers[name] = {"loads": loads, "causes": causes, "exit": code}
    result.must[f"{name}: recognized as out of memory"] = set(causes) <= {"out_of_memory"} and (
        ends or bool(causes)
    )
    result.must[f"{name}: at most {MOST_LOADS} loads"] = 1 <= loads <= MOST_LOADS
    result.must[f"{name}: no sample is convicted"] = not failed
    result.must[f"{name}: {'gets through' if ends else 'ends with an error'}"] = (code == 0) == ends
