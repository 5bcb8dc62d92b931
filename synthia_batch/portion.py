"""What a run is to make now, all that is missing or some picks of it: the driver's view of the keeper."""

from collections.abc import Iterator, Sequence
from typing import Any

from synthia_batch.core.types import Record, Sample, Turn
from synthia_batch.keeper import Keeper
from synthia_batch.picks import Picks
from synthia_batch.storage.recovery import Unfinished


class Portion:
    """The samples to be made, counted by themselves. Implements `Recorder`; the keeper records everything."""

    def __init__(self, keeper: Keeper, picks: Picks | None = None) -> None:
        """Take in all samples of the run, or `picks` of them. Opens the journals of the shards of picks."""
        self._keeper = keeper
        self._picks = picks
        self._others = 0 if picks is None else keeper.samples - len(picks.ordinals)
        self._failed_before = keeper.failed
        self._finished_before = keeper.finished
        self._ended_before = keeper.finished + keeper.failed if picks is None else self._count_ended()

    @property
    def samples(self) -> int:
        """The samples of this portion."""
        return self._keeper.samples - self._others

    @property
    def finished(self) -> int:
        """The samples of it made so far; of picks, those that ended earlier count as made."""
        if self._picks is None:
            return self._keeper.finished
        return self._ended_before + self._keeper.finished - self._finished_before

    @property
    def failed(self) -> int:
        """The samples of it that could not be made; of picks, since this attempt began."""
        return self._keeper.failed - (0 if self._picks is None else self._failed_before)

    def list_missing(self) -> Iterator[tuple[Sample, Sequence[Turn]]]:
        """Yield every sample that has not ended, in order, with the turns of it that have."""
        keeper = self._keeper
        for state in keeper.unfinished:
            wanted = self._list_wanted(state)
            if wanted is not None and not wanted:
                continue  # Not even its journal is opened.
            ended, turns = keeper.list_ended(state.shard), keeper.list_turns(state.shard)
            for sample in keeper.assembler.list_samples(state.shard, wanted):
                if sample.ordinal not in ended:
                    yield sample, turns.get(sample.ordinal, ())

    def record(self, records: Sequence[Record]) -> None:
        """Make these samples and turns durable."""
        self._keeper.record(records)

    def tick(self) -> None:
        """Sync what has waited long enough."""
        self._keeper.tick()

    def note(self, kind: str, **fields: Any) -> None:
        """Add to the run's history."""
        self._keeper.note(kind, **fields)

    def _list_wanted(self, state: Unfinished) -> Sequence[int] | None:
        return None if self._picks is None else self._picks.within(state.shard)

    def _count_ended(self) -> int:
        missing = 0
        for state in self._keeper.unfinished:
            wanted = self._list_wanted(state)
            if wanted:
                missing += len(set(wanted) - self._keeper.list_ended(state.shard))
        return self.samples - missing
