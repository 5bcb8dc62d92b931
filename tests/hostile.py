"""A run whose every text was written by somebody who means ill: what its page and its card must bear."""

import json
import subprocess
from dataclasses import replace
from pathlib import Path

from conftest import command_of, make_environment, write_jsonl

from synthia_batch.core.types import Failed, Finished
from synthia_batch.results.verify.facts import read_facts
from synthia_batch.storage.journal.writer import write_journal

MARK = "window.pwned=1"
TEXTS = (
    f"<script>{MARK}</script>",
    f"</script></style></textarea></title></details><script>{MARK}</script>",
    f"\"><img src=x onerror='{MARK}'><svg onload={MARK}>",
    f"' autofocus onfocus='{MARK}' x='",
    f'[click](javascript:{MARK}) <a href="javascript:{MARK}">here</a>',
    "<iframe src='https://example.com/'></iframe><link rel=stylesheet href=https://example.com/a.css>",
    "<style>body{display:none}</style><base href=https://example.com/><meta http-equiv=refresh content=0>",
    "{{ 7*7 }} {% raw %} {{ config }} ]]> <!-- -->",
    "\u202eevil\u202d \u2066isolated \u200fright-to-left שלום مرحبا",
    "controls \x00\x01\x07\x08\x1b[31m \x7f\x9b and \r carriage \u2028 separators \ufeff",
    "\U0001f469\u200d\U0001f469\u200d\U0001f467 \U0001f3f4 emoji " * 40,
    "x" * 100_000,
    "<b>" * 40_000,
    "\U0001f600" * 30_000,
    "| cell | ``` fence ` code \\ backslash\n# heading\n---\n",
    "",
)
FILE_NAME = "q'\"><img src=x onerror=window.pwned=1>.jsonl"
SCRIPTED = ("--engine", "scripted", "--pool", "local", "-q")


def make_hostile_run(home: Path) -> Path:
    """Make a complete run in `home` with hostile prompts, answers, reasons, errors and names."""
    # A null character is in no JSON text of a prompt that a tokenizer would take apart: it may stay.
    source = write_jsonl(home / FILE_NAME, [{"prompt": text or "(nothing)"} for text in TEXTS])
    systems = [flag for text in TEXTS[:3] for flag in ("-s", f"text:{text}")]
    command = command_of("run", source, *SCRIPTED, *systems, "-o", home / "out")
    # An engine that loads for longer than the run may last leaves a run without a sample.
    settings = ("--set", "engine.load_seconds=30", "--set", "deadline=0.5")
    drained = subprocess.run([*command, *settings], env=make_environment(), capture_output=True, check=False)
    assert drained.returncode == 75, drained.stderr
    facts = read_facts(home / "out")
    (shard,) = facts.shards
    outcomes = [_make_outcome(ordinal) for ordinal in range(shard.first, shard.stop)]
    journal = facts.run_dir.journal(shard)
    write_journal(journal, shard, replace(facts.writer, epoch=1), outcomes)
    done = subprocess.run(command, env=make_environment(), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return home / "out"


def add_history(run_directory: Path) -> None:
    """Give the run a history with progress, a lost worker and a resume, and hostile names in it."""
    lines = []
    for minute, kind, fields in (
        (0, "attempt_started", {"epoch": 1, "pid": 1, "host": TEXTS[0]}),
        (0, "worker_ready", {"worker": 0, "engine": TEXTS[2], "device": TEXTS[3]}),
        (1, "progress", _progress(60, 100)),
        (2, "progress", _progress(120, 2100)),
        (2, "worker_lost", {"worker": 0, "reason": TEXTS[1], "unfinished": 3}),
        (3, "progress", _progress(180, 3000)),
        (40, "attempt_started", {"epoch": 2, "pid": 2, "host": TEXTS[5]}),
        (41, "worker_ready", {"worker": 0, "engine": TEXTS[2], "device": TEXTS[3]}),
        (41, "progress", _progress(60, 500)),
        (42, "progress", _progress(120, 4500)),
        (43, "attempt_ended", {"made": 30, "drained": TEXTS[4]}),
    ):
        time = f"2026-11-21T10:{minute:02}:00.000+00:00"
        lines.append(json.dumps({"time": time, "kind": kind, **fields}) + "\n")
    (run_directory / ".synthia" / "events.jsonl").write_text("".join(lines))


def _make_outcome(ordinal: int) -> Finished | Failed:
    text = TEXTS[ordinal % len(TEXTS)]
    if ordinal % 7 == 3:
        return Failed(ordinal=ordinal, code=f"code<script>{MARK}</script>", message=text)
    return Finished(
        ordinal=ordinal,
        response=text,
        reasoning=TEXTS[(ordinal + 1) % len(TEXTS)] or None,
        finish_reason=("length", "stop", TEXTS[2])[ordinal % 3],
        prompt_tokens=10 + ordinal,
        completion_tokens=len(text) // 4,
    )


def _progress(elapsed: int, tokens: int) -> dict[str, object]:
    return {
        "elapsed_seconds": float(elapsed),
        "samples": tokens // 50,
        "tokens": tokens,
        "prompt_tokens": 0,
        "cached_prompt_tokens": 0,
        "workers": [{"worker": 0, "busy_seconds": elapsed * 0.8, "heard_seconds": float(elapsed)}],
    }
