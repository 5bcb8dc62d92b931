"""Steps 1, 2, 5 and 6: whole jobs, killed ones and quantized ones, by the command line."""

import contextlib
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

from benchmarks.gpu_steps.base import (
    GONE_SECONDS,
    Result,
    Setting,
    digest_data,
    list_marked,
    make_environment,
    make_run,
    read_events,
    read_name,
    read_used_memory,
    run,
    wait_until_gone,
)
from benchmarks.throughput.process import ROOT
from synthia_batch.storage.layout import RunDir
from synthia_batch.workers.pools.process_tree import list_descendants

NOTICED_SECONDS = 30.0
FREED_BYTES = 200 * 2**20
"""GPU memory may differ by this much: displays and other programs use some."""
RERUN = 32


def run_strict(setting: Setting) -> Result:
    """Step 1: a job, the same command again, and verify; then nothing of it may be left."""
    out, logs = setting.directory / "strict", setting.directory / "logs"
    before = read_used_memory()
    first = run(make_run(setting, out), logs / "1-run.log", setting.allow(400))
    left = wait_until_gone(GONE_SECONDS, first.pids)
    used = read_used_memory() - before
    again = run(make_run(setting, out), logs / "1-again.log", setting.allow(100))
    verified = run(
        [sys.executable, "-m", "synthia_batch", "verify", str(out)], logs / "1-verify.log", setting.allow(100)
    )
    return Result(
        must={
            "run, same command and verify exit with 0": not (first.code or again.code or verified.code),
            f"no engine process is left after {GONE_SECONDS:.0f} s": not left,
            f"no GPU memory is left after {GONE_SECONDS:.0f} s": used < FREED_BYTES,
        },
        numbers={
            "seconds": round(first.seconds, 1),
            "again_seconds": round(again.seconds, 1),
            "rows": setting.rows,
            "sha256": digest_data(out),
            "tail": [] if first.code == 0 else first.output.splitlines()[-5:],
        },
    )


def run_killed(setting: Setting) -> Result:
    """Step 2: the same job with two engines on one GPU, whose core, actor and driver are killed."""
    out, logs = setting.directory / "killed", setting.directory / "logs"
    shutil.rmtree(out, ignore_errors=True)
    two = ["--workers", "2", *([] if setting.is_rehearsal else ["--set", "pool.engines_per_gpu=2"])]
    command = make_run(setting, out, *two)
    result = Result()
    with (logs / "2-run.log").open("wb") as log:
        driver = subprocess.Popen(command, cwd=ROOT, env=make_environment(), stdout=log, stderr=log)
        try:
            _kill_in_turn(setting, out, driver, result)
        finally:
            pids = list_descendants(driver.pid)
            driver.kill()
            driver.wait()
    left = wait_until_gone(NOTICED_SECONDS, pids)
    result.must["no orphan of a killed driver after 30 s"] = not left
    for pid in left:
        with contextlib.suppress(OSError):
            os.kill(pid, signal.SIGKILL)
    resumed = run(command, logs / "2-resume.log", setting.allow(400))
    result.must["it resumes to the bytes of step 1"] = resumed.code == 0 and (
        digest_data(out) == digest_data(setting.directory / "strict")
    )
    result.numbers["sha256"] = digest_data(out)
    return result


def _kill_in_turn(setting: Setting, out: Path, driver: "subprocess.Popen[bytes]", result: Result) -> None:
    """Kill a core and an actor, each `kill_after` samples after the last, and wait until it is noticed."""
    victims: list[tuple[str, Callable[[int], int | None]]] = [("core", _find_core), ("actor", _find_actor)]
    for number, (name, find) in enumerate(victims, start=1):
        if not _wait(lambda: _count_samples(out) >= number * setting.kill_after, driver, setting.allow(300)):  # noqa: B023
            result.must[f"{name} killed while samples were left"] = False
            return
        victim = find(driver.pid)
        if victim is None:
            result.skipped.append(f"no {name} in a process of its own: on CPUs the engine runs in its actor")
            continue
        losses = _count_losses(out)
        os.kill(victim, signal.SIGKILL)
        began = time.monotonic()
        noticed = _wait(lambda: _count_losses(out) > losses, driver, NOTICED_SECONDS)  # noqa: B023
        result.must[f"a killed {name} is noticed in 30 s"] = noticed
        result.numbers[f"{name}_noticed_seconds"] = round(time.monotonic() - began, 1)
    is_running = _wait(lambda: _count_samples(out) >= 3 * setting.kill_after, driver, setting.allow(300))
    result.must["driver killed while samples were left"] = is_running and driver.poll() is None


def _wait(condition: Callable[[], bool], driver: "subprocess.Popen[bytes]", seconds: float) -> bool:
    until = time.monotonic() + seconds
    while time.monotonic() < until and driver.poll() is None:
        if condition():
            return True
        time.sleep(0.1)
    return condition()


def _count_samples(out: Path) -> int:
    """Return the samples journaled so far; each has a line."""
    with contextlib.suppress(OSError):
        files = [path for path in RunDir(out).journals.rglob("*") if path.is_file()]
        return sum(path.read_bytes().count(b"\n") for path in files)
    return 0


def _count_losses(out: Path) -> int:
    return sum(event.get("kind") == "worker_lost" for event in read_events(out))


def _find_actor(driver: int) -> int | None:
    return next((pid for pid in _find_engines(driver) if "EngineActor" in read_name(pid)), None)


def _find_core(driver: int) -> int | None:
    """Return an engine core, a process below an actor."""
    actors = [pid for pid in _find_engines(driver) if "EngineActor" in read_name(pid)]
    below = [pid for actor in actors for pid in list_descendants(actor)]
    return next((pid for pid in below if "EngineCore" in read_name(pid)), None)


def _find_engines(driver: int) -> list[int]:
    # Ray's own processes leave the driver's tree but keep its mark.
    return sorted({*list_marked(), *list_descendants(driver)})


def compare_two_engines(setting: Setting) -> Result:
    """Step 5: the seconds of one engine and of two on the same GPU, fast, start-up included."""
    logs = setting.directory / "logs"
    seconds = {}
    for engines in (1, 2):
        share = [] if setting.is_rehearsal else ["--set", f"pool.engines_per_gpu={engines}"]
        out = setting.directory / f"engines-{engines}"
        flags = ["--determinism", "fast", "--workers", str(engines), *share]
        ended = run(make_run(setting, out, *flags), logs / f"5-{engines}.log", setting.allow(400))
        seconds[str(engines)] = round(ended.seconds, 1) if ended.code == 0 else f"exit {ended.code}"
    return Result(numbers={"seconds_by_engines": seconds})


def run_awq(setting: Setting) -> Result:
    """Step 6: AWQ in strict, some of it generated again in another order, and AWQ in fast."""
    if setting.is_dummy:
        return Result(skipped=["the embedded model is not installed: there are no weights to quantize"])
    from tests.awq import make_awq_checkpoint

    model, logs = setting.directory / "awq", setting.directory / "logs"
    if not (model / "config.json").exists():
        make_awq_checkpoint(Path(setting.small), model)
    rows = min(setting.rows, 256)
    if setting.is_rehearsal and "avx512f" not in Path("/proc/cpuinfo").read_text():
        command = make_run(setting, setting.directory / "awq-refused", rows=rows, model=str(model))
        ended = run(command, logs / "6-refused.log", setting.allow(400))
        return Result(
            must={"AWQ is refused after one load": ended.code == 2 and "needs AVX512" in ended.output},
            skipped=["vLLM has no AWQ on CPUs without AVX512"],
        )
    rerun = min(rows, RERUN)
    strict, fast = setting.directory / "awq-strict", setting.directory / "awq-fast"
    made = run(
        make_run(setting, strict, rows=rows, model=str(model)), logs / "6-strict.log", setting.allow(400)
    )
    verify = [sys.executable, "-m", "synthia_batch", "verify", str(strict), "--rerun", str(rerun)]
    verified = run(verify, logs / "6-rerun.log", setting.allow(300))
    flags = ["--determinism", "fast"]
    other = run(
        make_run(setting, fast, *flags, rows=rows, model=str(model)), logs / "6-fast.log", setting.allow(400)
    )
    said = re.findall(r".*(?:rerun|again|differ).*", verified.output)
    return Result(
        must={
            f"AWQ strict, 0 of {rerun} differ": [made.code, verified.code] == [0, 0],
            "AWQ fast runs": other.code == 0,
        },
        numbers={
            "verify": said[-1:],
            "strict_seconds": round(made.seconds, 1),
            "fast_seconds": round(other.seconds, 1),
        },
    )
