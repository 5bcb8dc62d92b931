"""An engine's own settings, `engine.KEY`, read into its model of them."""

from collections.abc import Mapping
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from synthia_batch.errors import UsageError

Model = TypeVar("Model", bound=BaseModel)


def read_settings(model: type[Model], settings: Mapping[str, Any], whose: str) -> Model:
    """Return `settings` as `model` has them; `whose` they are is for a person.

    Raises:
        UsageError: One is unknown or has a value that does not fit. Names every such setting and, as a
            secret may stand in the wrong place, no value.
    """
    try:
        return model.model_validate(dict(settings))
    except ValidationError as exc:
        faults = "; ".join(f"engine.{'.'.join(map(str, f['loc']))}: {f['msg']}" for f in exc.errors())
        known = ", ".join(model.model_fields)
        raise UsageError(f"{whose} settings: {faults}; there are {known}") from None
