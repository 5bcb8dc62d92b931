"""What the samples of a run come to in numbers, whether they are published or still in a journal."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from synthia_batch.report.shards import list_samples
from synthia_batch.report.tally import Tally
from synthia_batch.verify.facts import read_facts


@dataclass(frozen=True, slots=True, kw_only=True)
class RunStatistics:
    """A run in numbers. `samples` is how many it will have, `finished` and `failed` those that ended.

    `failures` counts the failed ones by code, `finish_reasons` the finished ones by why they ended, both
    the commonest first. Tokens are the sums over the finished samples.
    """

    samples: int
    finished: int
    failed: int
    failures: Mapping[str, int]
    finish_reasons: Mapping[str, int]
    prompt_tokens: int
    completion_tokens: int

    @property
    def missing(self) -> int:
        """The samples that are still to be made."""
        return self.samples - self.finished - self.failed

    def to_dict(self) -> dict[str, Any]:
        """Return it as JSON-able values."""
        return {**asdict(self), "missing": self.missing}


def read_statistics(directory: Path) -> RunStatistics:
    """Return what the run in `directory` comes to so far. Reads small columns, a part at a time.

    Raises:
        UsageError: It is no run directory.
        IntegrityError: What it holds is not what was written.
    """
    facts = read_facts(directory)
    tally = Tally(max_tokens=facts.plan["identity"]["sampling"]["max_tokens"])
    for shard in list_samples(facts):
        numbers, codes = shard.read_numbers(), shard.read_codes()
        if numbers is not None:
            tally.add_made(numbers)
        if codes is not None:
            tally.add_failed(codes)
    whole = tally.whole
    return RunStatistics(
        samples=facts.shards[-1].stop,
        finished=whole.finished,
        failed=tally.failed,
        failures=tally.failures_by_number,
        finish_reasons=dict(whole.reasons.most_common()),
        prompt_tokens=whole.prompts.tokens,
        completion_tokens=whole.answers.tokens,
    )
