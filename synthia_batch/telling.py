"""Failed samples and cut off answers are told as they come: the first few of each kind, then their number."""

from collections import Counter
from collections.abc import Callable, Sequence

from synthia_batch.core.counts import CUT_OFF
from synthia_batch.core.formatting import make_printable
from synthia_batch.core.types import Failed, Finished, Record

TOLD_OF_EACH = 3
"""So many of each kind are named with their place in the input; then its 10th, 100th, 1,000th is told."""
MESSAGE_LENGTH = 160

Locate = Callable[[int], str]
"""Where in the input the row of a sample's ordinal is: file:line."""


class FailureTeller:
    """Tells of samples as they are recorded."""

    def __init__(self, say: Callable[[str], None], locate: Locate) -> None:
        self._say = say
        self._locate = locate
        self._counts: Counter[str] = Counter()

    def tell(self, records: Sequence[Record]) -> None:
        """Tell what is to be told of `records`."""
        for record in records:
            if isinstance(record, Failed):
                self._count(record.code, record.ordinal, record.message)
            elif isinstance(record, Finished) and record.finish_reason == CUT_OFF:
                self._count(
                    "cut off", record.ordinal, f"the answer ends at {record.completion_tokens} tokens"
                )

    def _count(self, what: str, ordinal: int, message: str) -> None:
        self._counts[what] += 1
        count = self._counts[what]
        if count <= TOLD_OF_EACH:
            more = "; from here on they are counted" if count == TOLD_OF_EACH else ""
            self._say(f"{self._locate(ordinal)}: {what}: {shorten(message)}{more}")
        elif count >= 10 and count == 10 ** (len(str(count)) - 1):
            self._say(f"{what}: {count:,} samples so far")


def shorten(text: str, length: int = MESSAGE_LENGTH) -> str:
    """Return `text` on one line that a terminal can show as it is, cut to `length` characters."""
    line = " ".join(text.split())
    safe = make_printable(line[: 2 * length])
    return safe if len(safe) <= length else safe[: length - 3] + "..."
