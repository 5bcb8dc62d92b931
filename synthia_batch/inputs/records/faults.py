"""Faults of the input, collected so that ten are reported at once."""

from typing import NoReturn

from synthia_batch.core.errors import InputRefused

MAX_FAULTS = 10
REWRITE_LISTS = "If each line is the messages of one row, name them: `jq -c '{messages: .}' OLD > NEW.jsonl`"
"""How to go on with lists of messages in place of rows."""


class RowFault(Exception):
    """A fault of one value or row. The source adds its place to the text."""


class OtherRequest(RowFault):
    """A request that does not fit the first one, whose place is added where it is known."""


def describe_long_row(max_row_bytes: int) -> str:
    """Return the fault of a row of more bytes than the job's limit."""
    size = f"{max_row_bytes / 2**20:g} MiB" if max_row_bytes >= 2**20 else f"{max_row_bytes:,} bytes"
    return f"the row is longer than {size}; --max-row-bytes raises the limit"


class FaultList:
    """The faults of one pass. The eleventh ends the pass."""

    def __init__(self) -> None:
        self._faults: list[str] = []

    def __len__(self) -> int:
        return len(self._faults)

    def add(self, place: str, text: str) -> None:
        """Add the fault at `place`. Raises InputRefused for the eleventh."""
        if len(self._faults) == MAX_FAULTS:
            self._refuse(more=True)
        self._faults.append(f"{place}: {text}")

    def raise_if_any(self) -> None:
        """Refuse the input if there were faults."""
        if self._faults:
            self._refuse(more=False)

    def _refuse(self, *, more: bool) -> NoReturn:
        raise InputRefused(self._faults, more=more)
