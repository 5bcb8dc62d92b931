"""Throughput, side by side: synthia-batch and what a user would take instead, on one job.

    python -m benchmarks.throughput                              # all of it: about an hour on two cores
    python -m benchmarks.throughput --prompts 16 --max-tokens 16 --rounds 1 --sides ours,bare
    python -m benchmarks.throughput --model-shape llama-2-7b-dummy     # on a GPU, without weights

Every side is a process of its own with a clean environment. Sides take turns, round by round. What
has several variants tries each of them once first and goes on with the one that was done soonest.
"""

import argparse
import datetime
import re
import sys
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path

from benchmarks.throughput.machine import count_engines, describe_machine, read_load
from benchmarks.throughput.measures import Measured, choose_best
from benchmarks.throughput.process import ROOT, Ended, make_empty, run_process
from benchmarks.throughput.report import (
    GENERATING,
    make_targets,
    write_busy,
    write_failures,
    write_ratios,
    write_raw,
    write_sides,
)
from benchmarks.throughput.sides import SIDES
from benchmarks.throughput.sides.base import NotRun, Reading, Side
from benchmarks.throughput.workload import LEAST_TOKENS, MODEL_SHAPES, Wish, Workload, make_workload
from synthia_batch.core.hardware import detect_device

RESULTS = Path(__file__).resolve().parents[1] / "results"
MIXED_SIDES = ("ours", "bare-strict")
LOG_LINES = 25


def main() -> None:
    options = parse_options()
    with ExitStack() as stack:
        scratch = options.directory or stack.enter_context(tempfile.TemporaryDirectory(prefix="bench-"))
        wish = Wish(
            prompts=options.prompts,
            max_tokens=options.max_tokens,
            model_shape=options.model_shape,
            workers=options.workers or count_engines(detect_device()),
        )
        same = Bench(workload=make_workload(wish, make_empty(Path(scratch) / "same")), options=options)
        chosen = same.try_variants(options.sides)
        same.run_rounds(list(chosen.values()))
        mixed = None
        of_mixed = [SIDES[name][0] for name in MIXED_SIDES if name in options.sides]
        if options.mixed_prompts and of_mixed:
            wish = replace(
                wish, prompts=options.mixed_prompts, max_tokens=options.mixed_max_tokens, is_mixed=True
            )
            mixed = Bench(workload=make_workload(wish, make_empty(Path(scratch) / "mixed")), options=options)
            mixed.run_rounds(of_mixed)
        text = compose(options, same, chosen, mixed)
    write_result(options.output, text)
    if any(one.status == "failed" for one in same.measured):
        sys.exit("a side failed: see the result")


def parse_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="benchmarks.throughput",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--prompts", type=int, default=512)
    add("--max-tokens", type=int, default=128, help="new tokens per answer, at most")
    add("--rounds", type=int, default=3)
    add(
        "--sides",
        type=_choose_sides,
        default=SIDES,
        help=f"of {','.join(SIDES)}; one variant of several as run-batch:eager",
    )
    add("--workers", type=int, help="engines; default: one per GPU, or two on CPUs")
    add("--mixed-prompts", type=int, default=256, help="of the second job, whose lengths are mixed; 0: none")
    add("--mixed-max-tokens", type=int, default=512)
    add(
        "--model-shape",
        choices=sorted(MODEL_SHAPES),
        help="random weights of this shape; default: the embedded model",
    )
    add("--timeout", type=float, default=1800, help="seconds that a side may take")
    add("--directory", type=Path, help="where the sides work and leave their logs; default: a temporary one")
    today = datetime.datetime.now(datetime.UTC).date()
    add("--output", type=Path, default=RESULTS / f"{today}-throughput.md", help="the result, as Markdown")
    return parser.parse_args()


def _choose_sides(text: str) -> dict[str, list[Side]]:
    chosen = {}
    for word in text.split(","):
        name, _, variant = word.partition(":")
        chosen[name] = [side for side in SIDES.get(name, ()) if variant in ("", getattr(side, "variant", ""))]
        if not chosen[name]:
            raise argparse.ArgumentTypeError(f"no such side: {word}; there are {', '.join(SIDES)}")
    return chosen


@dataclass(slots=True, kw_only=True)
class Bench:
    """One workload, done by one side after the other."""

    workload: Workload
    options: argparse.Namespace
    measured: list[Measured] = field(default_factory=list)
    trials: list[Measured] = field(default_factory=list)
    _texts: dict[tuple[int, str], list[str]] = field(default_factory=dict)

    def try_variants(self, names: Mapping[str, Sequence[Side]]) -> dict[str, Side]:
        """Return for every name the side to measure: its only one, or the best of its variants."""
        chosen: dict[str, Side] = {}
        for name, variants in names.items():
            trials = [self.measure(side, 0) for side in variants] if len(variants) > 1 else []
            self.trials += trials
            best = choose_best(trials)
            chosen[name] = variants[trials.index(best) if best else 0]
        return chosen

    def run_rounds(self, sides: Sequence[Side]) -> None:
        """Measure every side in every round, each round beginning with the next side."""
        for number in range(1, self.options.rounds + 1):
            first = (number - 1) % len(sides)
            self.measured += [self.measure(side, number) for side in (*sides[first:], *sides[:first])]
        self.measured = [self._compare(one) for one in self.measured]

    def tell_load(self) -> dict[str, str]:
        """Return what else the machine was doing: numbers taken beside other work must not be compared."""
        loads = [one.load for one in self.measured]
        return {"load average before each side": f"{min(loads):.1f} to {max(loads):.1f}"}

    def measure(self, side: Side, number: int) -> Measured:
        """Return the numbers of one side in one round, or why there are none."""
        load = read_load()
        directory = make_empty(self.workload.input.parent / "side")
        try:
            workload = side.select(self.workload)
            command = side.prepare(workload, directory)
        except NotRun as why:
            return self._tell(Measured(side=side.name, number=number, status="not run", reason=str(why)))
        ended = run_process(
            command.arguments,
            command.environment,
            lambda: side.find_first(directory),
            self.options.timeout,
        )
        log = re.sub(r"\W+", "-", f"{number} {side.name}") + ".log"
        (self.workload.input.parent / log).write_text(ended.tail(None))
        failed = Measured(side=side.name, number=number, status="failed", load=load, seconds=ended.seconds)
        if ended.code:
            reason = f"exit code {ended.code} after {ended.seconds:.0f} s\n{ended.tail(LOG_LINES)}"
            return self._tell(replace(failed, reason=hide_places(reason)))
        try:
            reading = side.read(workload, directory, ended)
            check_answers(workload, reading)
        except Exception as exc:  # Whatever a side left that cannot be read: the others go on.
            reason = f"{type(exc).__name__}: {exc}\n{ended.tail(LOG_LINES)}"
            return self._tell(replace(failed, reason=hide_places(reason)))
        return self._tell(replace(self._count(side, number, ended, reading), load=load))

    def _count(self, side: Side, number: int, ended: Ended, reading: Reading) -> Measured:
        self._texts[number, side.name] = [answer.text.strip() for answer in reading.answers]
        lengths = [answer.tokens for answer in reading.answers]
        return Measured(
            side=side.name,
            number=number,
            status="ok",
            seconds=ended.seconds,
            ready_seconds=reading.ready and reading.ready - ended.started,
            first_seconds=reading.first and reading.first - ended.started,
            generating_seconds=reading.last - reading.ready if reading.last and reading.ready else None,
            answers=len(lengths),
            prompt_tokens=sum(answer.prompt_tokens for answer in reading.answers),
            output_tokens=sum(lengths),
            longest=max(lengths),
            shortest=min(lengths),
            busy=reading.busy,
        )

    def _compare(self, one: Measured) -> Measured:
        """Count the answers that are those of synthia-batch in the same round."""
        mine = self._texts.get((one.number, one.side))
        ours = self._texts.get((one.number, SIDES["ours"][0].name))
        if mine is None or ours is None:
            return one
        return replace(one, same=sum(a == b for a, b in zip(mine, ours, strict=False)))

    def _tell(self, one: Measured) -> Measured:
        speed = f"{one.tokens_per_second:,.0f} tokens/s" if one.tokens_per_second else one.reason
        seconds = f"{one.seconds:.1f} s, " if one.seconds else ""
        print(f"round {one.number}: {one.side}: {one.status}, {seconds}{speed}", file=sys.stderr, flush=True)
        return one


def hide_places(text: str) -> str:
    """Return `text` without the directories of this machine: results are published."""
    places = {
        str(ROOT): "REPOSITORY",
        sys.prefix: "VENV",
        sys.base_prefix: "PYTHON",
        str(Path.home()): "HOME",
    }
    for place in sorted(places, key=len, reverse=True):
        text = text.replace(place, places[place])
    return text


def check_answers(workload: Workload, reading: Reading) -> None:
    """Return if every prompt has an answer of a possible length, and was rendered to the same tokens.

    Raises:
        ValueError: Which does not hold: such a side did another job.
    """
    if len(reading.answers) != len(workload.prompts):
        raise ValueError(f"{len(reading.answers)} answers to {len(workload.prompts)} prompts")
    for prompt, answer in zip(workload.prompts, reading.answers, strict=True):
        if answer.prompt_tokens != len(prompt.token_ids):
            raise ValueError(
                f"{prompt.id}: {answer.prompt_tokens} prompt tokens, not {len(prompt.token_ids)}"
            )
        if not 0 < answer.tokens <= prompt.max_tokens:
            raise ValueError(f"{prompt.id}: {answer.tokens} tokens, not 1 to {prompt.max_tokens}")


def compose(options: argparse.Namespace, same: Bench, chosen: Mapping[str, Side], mixed: Bench | None) -> str:
    """Return the whole result."""
    workload, names = same.workload, {name: side.name for name, side in chosen.items()}
    model = options.model_shape or "the embedded model"
    parts = [
        f"# Throughput, side by side, {datetime.datetime.now(datetime.UTC):%Y-%m-%d %H:%M} UTC",
        f"`python -m benchmarks.throughput`: {len(workload.prompts)} prompts of "
        f"{sum(len(p.token_ids) for p in workload.prompts)} tokens in all, at most {workload.max_tokens} new "
        f"tokens each, seeded, {model}, {workload.workers} engines, {options.rounds} rounds.",
        "\n".join(f"- {name}: {fact}" for name, fact in (describe_machine() | same.tell_load()).items()),
        GENERATING,
        write_sides(same.measured),
        write_ratios(same.measured, make_targets(names)),
        "\n".join(f"- {side.name}: {side.note}" for side in chosen.values()),
    ]
    if same.trials:
        parts += ["## Variants, each tried once", write_sides(same.trials)]
    if mixed is not None:
        parts += [
            "## Mixed lengths",
            f"{len(mixed.workload.prompts)} questions, each with a limit of its own, drawn from "
            f"{LEAST_TOKENS} to {mixed.workload.max_tokens} tokens. Busy share of each engine between the "
            "run's first and last sample (must be at least 0.95); first sample after less than 15 s.",
            write_busy(mixed.measured),
            write_sides(mixed.measured),
        ]
    everything = [*same.trials, *same.measured, *(mixed.measured if mixed else [])]
    failures = write_failures(everything)
    if failures:
        parts += ["## Without numbers", failures]
    parts += ["## Every round", f"```\n{write_raw(everything)}\n```"]
    return "\n\n".join(parts) + "\n"


def write_result(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    print(text)
    print(f"written to {path}", file=sys.stderr)


if __name__ == "__main__":
    main()
