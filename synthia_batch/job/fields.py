"""Field types of the job's schema: numbers, paths, inputs, and the base class of its sections."""

import os
import re
from datetime import date
from pathlib import Path
from typing import Annotated, Any

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PlainSerializer,
    PlainValidator,
    WithJsonSchema,
)

from synthia_batch.job.markers import Anchored
from synthia_batch.job.units import refuse_bool

ADDRESS = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://")
"""Start of an input that is not on this machine."""
STDIN = "-"
NUMBERED_ROWS = "rows://"
"""Start of the path that stands for numbered rows; how many follows."""
LONGEST_NAME = 255


def anchor_path(path: str, folder: Path) -> str:
    """Return `path` joined to `folder` unless it is absolute or a URL."""
    return path if "://" in path else os.path.normpath(folder / os.path.expanduser(path))


def anchor_file_reference(text: str, folder: Path) -> str:
    """Return `@FILE` with its path anchored, any other text unchanged."""
    return "@" + anchor_path(text[1:], folder) if text.startswith("@") else text


def _anchor_input(path: str, folder: Path) -> str:
    return path if path in ("", STDIN) or ADDRESS.match(path) else anchor_path(path, folder)


def check_names(path: str) -> str:
    """Return `path` if a file system can hold every name in it.

    Raises:
        ValueError: One has more than 255 bytes, the limit of nearly every file system.
    """
    if any(len(os.fsencode(name)) > LONGEST_NAME for name in path.split("/")):
        raise ValueError(f"Input should be a path whose names have at most {LONGEST_NAME} bytes each")
    return path


def _read_paths(value: Any) -> str | tuple[str, ...]:
    """Return one path or several as text: an address is no Path, and a file name may not be UTF-8."""
    if isinstance(value, str | Path):
        if not os.fspath(value):
            raise ValueError("Input should be a path, and is empty")
        is_address = isinstance(value, str) and ADDRESS.match(value)
        return os.path.expanduser(value if is_address else check_names(os.fspath(value)))
    if not isinstance(value, list | tuple) or not value:
        raise ValueError("Input should be a path, or a list of paths")
    paths = [_read_paths(path) if isinstance(path, str | Path) else None for path in value]
    if any(not isinstance(path, str) for path in paths):
        raise ValueError("Input should be a path, or a list of paths")
    return tuple(str(path) for path in paths)


def _write_paths(value: str | tuple[str, ...]) -> Any:
    """Return the same as JSON and YAML values."""
    return value if isinstance(value, str) else list(value)


InputPath = Annotated[
    str | tuple[str, ...],
    PlainValidator(_read_paths),
    PlainSerializer(_write_paths, return_type=Any),
    WithJsonSchema(
        {"anyOf": [{"type": "string", "minLength": 1}, {"type": "array", "items": {"type": "string"}}]}
    ),
    Anchored(_anchor_input),
]
"""One or several files, directories, patterns and addresses."""


Whole = Annotated[int, BeforeValidator(refuse_bool)]
Number = Annotated[float, Field(allow_inf_nan=False), BeforeValidator(refuse_bool)]
HomePath = Annotated[
    Path, AfterValidator(lambda path: Path(os.path.expanduser(check_names(str(path))))), Anchored(anchor_path)
]
"""A path that may start with `~`, the home directory."""


def _check_day(text: str) -> str:
    try:
        return date.fromisoformat(text).isoformat()
    except ValueError as exc:
        raise ValueError("Input should be a day such as 2025-01-31") from exc


Day = Annotated[str, AfterValidator(_check_day)]
"""A day as YYYY-MM-DD."""
STORE_URL = r"^(s3|gs)://[^/]+/.*[^/].*$"
StoreUrl = Annotated[str, Field(pattern=STORE_URL)]
"""A prefix in a bucket."""


class Section(BaseModel):
    """A part of a job file. Unknown keys are refused."""

    # `schema` shows the docstrings under the fields as descriptions.
    model_config = ConfigDict(
        extra="forbid", frozen=True, validate_default=True, use_attribute_docstrings=True
    )
