"""What the sections of a job file are made of."""

import os
from pathlib import Path
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field


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
