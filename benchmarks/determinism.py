"""Does a sample's text depend on what else is in the batch? Token for token, on this machine's CPU.

    python -m benchmarks.determinism -o benchmarks/results/DATE-determinism.md     # half an hour
    python -m benchmarks.determinism --prompts 32 --subset 16 -o small.md          # ten minutes on a core
    python -m benchmarks.determinism --only strict,float16 --keep DIRECTORY        # some of it now
    python -m benchmarks.determinism --dtype float32     # where bfloat16 is slow

Prompts of 8 to 1,500 tokens, every second one greedy, the others sampled with seeds of their own. Each
pass lets them in in an order of its own and compares every token sequence with the reference pass. What
strict determinism leaves out is measured beside it, as a contrast. With `--keep`, passes that are there
already are not made again.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from datetime import date
from pathlib import Path
from queue import SimpleQueue
from typing import Any

from benchmarks.determinism_pass import LONGEST, SHORTEST, Pass, Setup
from benchmarks.throughput.machine import describe_machine
from synthia_batch.core.hardware import list_cores
from synthia_batch.models.demo import prepare_demo_model
from tests.awq import make_awq_checkpoint

SMALL_CACHE_BYTES = 96 * 2**20
"""Some 4,000 tokens of SmolLM2's 23,040 bytes each: a batch of 64 does not fit."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """A setup, the passes that it is compared with, and what it is in the table.

    `reference` is `SETUP-PASS`. `is_contrast`: strict determinism leaves it out.
    """

    setup: Setup
    title: str
    reference: str
    is_contrast: bool = False


def list_comparisons(model: str, awq: str, prompts: int, subset: int) -> list[Comparison]:
    """Return the matrix. `subset` prompts are enough for what is not the main question."""
    wide = Setup(
        name="strict", model=model, prompts=prompts, new_tokens=16, settings={},
        passes=_at(16, 1, 2, 3, 7, 64),
    )  # fmt: skip
    large = {"max_num_seqs": 256, "max_num_batched_tokens": 16384}
    narrow = replace(wide, prompts=subset, new_tokens=32, passes=_at(16))
    small_cache = {"kv_cache_memory_bytes": SMALL_CACHE_BYTES}
    uncached = {"enable_prefix_caching": False}
    both = (Pass(name="cold", batch=16), Pass(name="warm", batch=16, is_warm=True))
    shared = replace(narrow, name="shared", prompts=prompts, new_tokens=16, shares=True)
    main, base, awq_base = "strict-16", "reference-16", "awq-16"
    return [
        Comparison(setup=wide, title="bfloat16", reference=main),
        Comparison(
            setup=replace(
                wide, name="large-steps", settings=large, prefill_tokens=16384, passes=_at(64, 256)
            ),
            title="bfloat16, 16,384 tokens a step",
            reference=main,
        ),
        Comparison(setup=replace(narrow, name="reference"), title="bfloat16, 32 new tokens", reference=base),
        Comparison(
            setup=replace(narrow, name="small-cache", settings=small_cache, passes=_at(64)),
            title="a KV cache of 96 MiB",
            reference=base,
        ),
        Comparison(
            setup=replace(narrow, name="float16", dtype="float16", passes=_at(16, 1, 3, 64)),
            title="float16",
            reference="float16-16",
        ),
        Comparison(
            setup=replace(narrow, name="awq", model=awq, passes=_at(16, 1, 3, 64)),
            title="AWQ, 4 bits, bfloat16",
            reference=awq_base,
        ),
        Comparison(
            setup=replace(narrow, name="awq-float16", model=awq, dtype="float16", passes=_at(16, 1, 3, 64)),
            title="AWQ, 4 bits, float16",
            reference="awq-float16-16",
        ),
        Comparison(
            setup=replace(
                shared, passes=(*_at(16), Pass(name="warm", batch=16, is_warm=True), *_at(1, 3, 64, 256))
            ),
            title="shared prefixes of 0 to 3,000 tokens, n = 1 and 8",
            reference="shared-16",
        ),
        Comparison(
            setup=replace(
                shared, name="shared-small-cache", settings={"kv_cache_memory_bytes": 2 * SMALL_CACHE_BYTES},
                passes=(*_at(64), Pass(name="warm", batch=64, is_warm=True)),
            ),
            title="the same, and a KV cache of 192 MiB",
            reference="shared-16",
        ),
        Comparison(
            setup=replace(narrow, name="unpadded", pads=False, passes=_at(1, 3, 64)),
            title="small GEMMs not padded",
            reference=base,
            is_contrast=True,
        ),
        Comparison(
            setup=replace(
                narrow, name="preempted", settings=small_cache | uncached, reserves=False, passes=_at(64)
            ),
            title="a KV cache of 96 MiB, and vLLM left to preempt",
            reference=base,
            is_contrast=True,
        ),
        Comparison(
            setup=replace(shared, name="left-alone", cuts=False, passes=both),
            title="shared prefixes, and the cache left to itself",
            reference="shared-16",
            is_contrast=True,
        ),
    ]  # fmt: skip


def _at(*batches: int) -> tuple[Pass, ...]:
    return tuple(Pass(name=str(batch), batch=batch) for batch in batches)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--prompts", type=int, default=256, help="of the main question [256]")
    parser.add_argument("--subset", type=int, default=64, help="of the others [64]")
    parser.add_argument("--dtype", default="auto", help="where a setup has none of its own [the model's]")
    parser.add_argument("--only", help="setups by name: a,b,c; --list shows them")
    parser.add_argument("--list", action="store_true", help="print the setups' names")
    parser.add_argument("--engines", type=int, default=1, help="at the same time, a core each [1]")
    parser.add_argument("--keep", type=Path, help="where passes are kept and found [nowhere]")
    parser.add_argument("-o", "--output", type=Path, help="the table [standard output]")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        directory = arguments.keep or Path(scratch) / "passes"
        directory.mkdir(parents=True, exist_ok=True)
        model = prepare_demo_model()
        # Always at one place: its path is in the setups that are kept.
        awq = directory / "awq"
        comparisons = [
            replace(one, setup=replace(one.setup, dtype=arguments.dtype))
            if one.setup.dtype == "auto"
            else one
            for one in list_comparisons(str(model), str(awq), arguments.prompts, arguments.subset)
        ]
        if arguments.list:
            print("\n".join(comparison.setup.name for comparison in comparisons))
            return
        wanted = set(arguments.only.split(",")) if arguments.only else None
        chosen = [one for one in comparisons if wanted is None or one.setup.name in wanted]
        if not awq.exists() and any(one.setup.model == str(awq) for one in chosen):
            make_awq_checkpoint(model, awq)
        run_setups([one.setup for one in chosen], directory, arguments.engines)
        text = describe(comparisons, directory, " ".join(sys.argv[1:]))
    if arguments.output:
        arguments.output.write_text(text)
    else:
        print(text)


def run_setups(setups: Sequence[Setup], directory: Path, engines: int) -> None:
    """Make the passes of `setups` that `directory` lacks, so many engines at a time."""
    cores: SimpleQueue[int] = SimpleQueue()
    for core in list_cores()[:engines]:
        cores.put(core)

    def run(setup: Setup) -> None:
        missing = [one for one in setup.passes if not (directory / f"{setup.name}-{one.name}.json").exists()]
        if not missing:
            return
        core = cores.get()
        said = directory / f"{setup.name}.setup"
        # A warm pass needs the cold one before it, in the same engine.
        passes = setup.passes if any(one.is_warm for one in setup.passes) else missing
        said.write_text(json.dumps(asdict(replace(setup, core=core, passes=passes))))
        try:
            command = [sys.executable, "-m", "benchmarks.determinism_pass", str(said), str(directory)]
            subprocess.run(command, check=True)
        finally:
            cores.put(core)

    with ThreadPoolExecutor(engines) as threads:
        list(threads.map(run, setups))


def describe(comparisons: Sequence[Comparison], directory: Path, flags: str) -> str:
    """Return the table of all passes that are there."""
    heads = (
        "engine",
        "at most at once",
        "seen",
        "preempted",
        "tokens from the cache",
        "prompts",
        "greedy differ",
        "sampled differ",
        "s",
    )
    strict = [row for one in comparisons if not one.is_contrast for row in _list_rows(one, directory)]
    contrast = [row for one in comparisons if one.is_contrast for row in _list_rows(one, directory)]
    machine = [f"- {name}: {value}" for name, value in describe_machine().items()]
    return "\n".join(
        [
            f"# Does the batch show in the tokens? {date.today().isoformat()}",
            "",
            f"`python -m benchmarks.determinism {flags}`: prompts of {SHORTEST} to {LONGEST} tokens,",
            "every second greedy, the others sampled at 0.75 with top_k 50; each pass in another order.",
            "*Seen* is the largest batch there was. A sequence differs if any of its tokens does.",
            "",
            *machine,
            "",
            "## Strict determinism",
            "",
            *_make_table(heads, strict),
            "",
            "## What strict determinism leaves out",
            "",
            *_make_table(heads, contrast),
            "",
        ]
    )


def _list_rows(comparison: Comparison, directory: Path) -> list[list[str]]:
    rows = []
    reference = _read(directory / f"{comparison.reference}.json")
    for one in comparison.setup.passes:
        name = f"{comparison.setup.name}-{one.name}"
        found = _read(directory / f"{name}.json")
        if found is None or reference is None:
            continue
        is_reference = name == comparison.reference
        # The reference may have more prompts than were asked of this setup, never fewer.
        differ = [n for n, tokens in found["tokens"].items() if tokens != reference["tokens"][n]]
        greedy = sum(int(n) % 2 for n in differ)
        counts = ["reference"] * 2 if is_reference else [str(greedy), str(len(differ) - greedy)]
        at_once = str(one.batch) if one.name == str(one.batch) else f"{one.batch}, {one.name}"
        seen = [str(found[name]) for name in ("largest", "preempted", "cached")]
        seen.append(str(len(found["tokens"])))
        rows.append([comparison.title, at_once, *seen, *counts, f"{found['seconds']:.0f}"])
    return rows


def _read(path: Path) -> dict[str, Any] | None:
    if not path.exists():
        return None
    found: dict[str, Any] = json.loads(path.read_text())
    return found


def _make_table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    lines = [f"| {' | '.join(row)} |" for row in (heads, ["---"] * len(heads), *rows)]
    return lines if rows else ["not measured"]


if __name__ == "__main__":
    main()
