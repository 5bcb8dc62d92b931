"""From numbers to the tables that are kept. Pure."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass

from benchmarks.throughput.measures import Measured, Ratio, find_ratio, take_medians

GENERATING = """\
*Whole process* is from the start of the command to its end. *First engine* and *first sample* count
from the same start. *Tokens/s* are all output tokens by the time from the first engine that can take
a prompt to the last finished sample. *Same answers* are those that are word for word synthia-batch's
of the same round. Medians of the rounds; ratios are of medians, with the least and the most of any
one round beside them."""


HEADS = (
    "side",
    "whole process, s",
    "first engine, s",
    "first sample, s",
    "tokens/s",
    "output tokens",
    "same answers",
    "rounds",
)
TIMES = ("seconds", "ready_seconds", "first_seconds", "tokens_per_second")


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """What the issue asks: `of` by `by`, in one number, at least or at most `bound`; None only tells."""

    of: str
    by: str
    attribute: str
    bound: float | None = None
    is_least: bool = False

    def judge(self, ratio: Ratio | None) -> str:
        """Return the verdict in a word or two."""
        if self.bound is None:
            return ""
        if ratio is None:
            return "not measured"
        is_met = ratio.value >= self.bound if self.is_least else ratio.value <= self.bound
        return "met" if is_met else "**missed**"


def make_targets(names: Mapping[str, str]) -> list[Target]:
    """Return the comparisons; `names` gives for a side of the command line the row that was measured."""
    ours, fast, bare = names.get("ours", ""), names.get("ours-fast", ""), names.get("bare", "")
    strict = names.get("bare-strict", "")
    speed, whole = "tokens_per_second", "seconds"
    return [
        Target(of=ours, by=bare, attribute=speed, bound=0.97, is_least=True),
        Target(of=ours, by=bare, attribute=whole, bound=1.05),
        Target(of=ours, by=strict, attribute=speed),
        Target(of=ours, by=strict, attribute=whole),
        Target(of=fast, by=bare, attribute=speed),
        Target(of=fast, by=bare, attribute=whole),
        Target(of=ours, by=fast, attribute=speed),
        Target(of=ours, by=names.get("run-batch", ""), attribute=whole, bound=0.60),
        Target(of=ours, by=names.get("ray-data", ""), attribute=whole, bound=0.42),
        Target(of=ours, by=names.get("cards", ""), attribute=speed, bound=20, is_least=True),
    ]


def write_sides(measured: Sequence[Measured]) -> str:
    """Return the table of the sides, in the order in which they first ran."""
    lines = [_row(HEADS), _row(["---"] * len(HEADS))]
    for side in dict.fromkeys(one.side for one in measured):
        mine = [one for one in measured if one.side == side]
        made = [one for one in mine if one.status == "ok"]
        if not made:
            lines.append(_row([side, mine[-1].status, *[""] * (len(HEADS) - 3), "0"]))
            continue
        times = [take_medians(made, name).get(side) for name in TIMES]
        same = f"{made[-1].same} of {made[-1].answers}" if made[-1].same is not None else ""
        tokens = " / ".join(str(count) for count in dict.fromkeys(one.output_tokens for one in made))
        count = f"{len(made)}" if len(made) == len(mine) else f"{len(made)} of {len(mine)}"
        lines.append(_row([side, *(_number(value) for value in times), tokens, same, count]))
    return "\n".join(lines)


def write_ratios(measured: Sequence[Measured], targets: Sequence[Target]) -> str:
    """Return the table of the comparisons between sides that were run."""
    known = {one.side for one in measured}
    what = {"tokens_per_second": "tokens/s", "seconds": "whole process"}
    lines = [_row(("ratio", "of", "measured", "one round", "must be", ""))]
    lines.append(_row(["---"] * 6))
    for target in targets:
        if {target.of, target.by} <= known:
            ratio = find_ratio(measured, target.attribute, target.of, target.by)
            value = f"{ratio.value:.3f}" if ratio else "-"
            spread = f"{ratio.least:.3f} to {ratio.most:.3f}" if ratio else ""
            bound = f"{'at least' if target.is_least else 'at most'} {target.bound:g}" if target.bound else ""
            sides = f"{target.of} : {target.by}"
            lines.append(_row((sides, what[target.attribute], value, spread, bound, target.judge(ratio))))
    return "\n".join(lines)


def write_busy(measured: Sequence[Measured]) -> str:
    """Return how busy each engine was between the first and the last sample, round by round."""
    lines = []
    for one in measured:
        shares = ", ".join(f"{name} {share:.3f}" for name, share in sorted(one.busy.items()))
        lengths = f"answers of {one.shortest} to {one.longest} tokens"
        if one.status == "ok":
            lines.append(
                f"- {one.side}, round {one.number}: {shares or 'no progress events, so not known'}; {lengths}"
            )
    return "\n".join(lines)


def write_failures(measured: Sequence[Measured]) -> str:
    """Return why sides have no numbers, with the last words of those that failed."""
    return "\n".join(
        f"**{one.side}**, round {one.number}, {one.status}:\n\n```\n{one.reason}\n```\n"
        for one in measured
        if one.status != "ok"
    )


def write_raw(measured: Sequence[Measured]) -> str:
    """Return every number of every round as JSON, one line for each."""
    return "\n".join(
        json.dumps({**asdict(one), "tokens_per_second": one.tokens_per_second}) for one in measured
    )


def _number(value: float | None) -> str:
    return "not known" if value is None else f"{value:,.1f}"


def _row(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"
