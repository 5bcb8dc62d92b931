"""What a job names as its input: one file, directory, pattern or address, or several.

What the sections of a job file are made of.
"""

import os
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


def _read_paths(value: Any) -> str | tuple[str, ...]:
    """Return one path, or several, as text: an address is no Path, and a file's name may be no UTF-8."""
    if isinstance(value, str | Path):
        if not os.fspath(value):
            raise ValueError("Input should be a path, and is empty")
        return os.path.expanduser(value)
    if not isinstance(value, list | tuple) or not value:
        raise ValueError("Input should be a path, or a list of paths")
    paths = [_read_paths(path) if isinstance(path, str | Path) else None for path in value]
    if any(not isinstance(path, str) for path in paths):
        raise ValueError("Input should be a path, or a list of paths")
    return tuple(str(path) for path in paths)


def _write_paths(value: str | tuple[str, ...]) -> Any:
    """Return the same, as JSON and YAML can say it."""
    return value if isinstance(value, str) else list(value)


InputPath = Annotated[
    str | tuple[str, ...],
    PlainValidator(_read_paths),
    PlainSerializer(_write_paths, return_type=Any),
    WithJsonSchema(
        {"anyOf": [{"type": "string", "minLength": 1}, {"type": "array", "items": {"type": "string"}}]}
    ),
]
"""Files, directories, patterns and addresses: one, or several."""


def _refuse_bool(value: Any) -> Any:
    # Pydantic takes true for 1, and a slip in YAML for a temperature.
    if isinstance(value, bool):
        raise ValueError("Input should be a number, not true or false")
    return value


def _expand_home(path: Path) -> Path:
    return Path(os.path.expanduser(path))


Whole = Annotated[int, BeforeValidator(_refuse_bool)]
Number = Annotated[float, Field(allow_inf_nan=False), BeforeValidator(_refuse_bool)]
HomePath = Annotated[Path, AfterValidator(_expand_home)]
"""A path that may start with `~`, the home directory."""

STORE_URL = r"^(s3|gs)://[^/]+/.*[^/].*$"
StoreUrl = Annotated[str, Field(pattern=STORE_URL)]
"""A prefix in a bucket."""


class Section(BaseModel):
    """A part of a job file. Unknown keys are refused."""

    # The docstrings under the fields are what `schema` says of them.
    model_config = ConfigDict(
        extra="forbid", frozen=True, validate_default=True, use_attribute_docstrings=True
    )
