"""Faults found in the input, collected so that ten can be shown at once."""

from typing import NoReturn

from synthia_batch.errors import InputRefused

MAX_FAULTS = 10


class RowFault(Exception):
    """What is wrong with one value or one row. The text does not say where: the source adds it."""


class FaultList:
    """The faults of one pass. The eleventh ends the pass."""

    def __init__(self) -> None:
        self._faults: list[str] = []

    def add(self, place: str, text: str) -> None:
        """Note what is wrong at `place`.

        Raises:
            InputRefused: It is one more than can be shown.
        """
        if len(self._faults) == MAX_FAULTS:
            self._refuse(more=True)
        self._faults.append(f"{place}: {text}")

    def raise_if_any(self) -> None:
        """Refuse the input if there were faults."""
        if self._faults:
            self._refuse(more=False)

    def _refuse(self, *, more: bool) -> NoReturn:
        raise InputRefused(self._faults, more=more)
