"""Inputs read through: what the tests of sources share."""

from pathlib import Path
from typing import Any

import pytest

from synthia_batch.core.types import Row
from synthia_batch.errors import InputRefused
from synthia_batch.inputs import Scan, Selection, open_source


def scan(path: Path, **selection: Any) -> Scan:
    return open_source(path).scan(Selection(**selection), path.parent)


def read_all(path: Path, **selection: Any) -> list[Row]:
    source = open_source(path)
    found = source.scan(Selection(**selection), path.parent)
    return list(source.read_rows(found, 0, found.rows))


def list_faults(path: Path, **selection: Any) -> list[str]:
    with pytest.raises(InputRefused) as caught:
        scan(path, **selection)
    return list(caught.value.faults)
