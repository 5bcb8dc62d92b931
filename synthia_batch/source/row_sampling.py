"""What a row says of its own sampling: what is accepted, the same for every format."""

from typing import Any

from pydantic import ValidationError

from synthia_batch.core.types import RowSampling
from synthia_batch.job.sampling import RowKeys, explain_row_fault
from synthia_batch.job.structured_check import check_structure
from synthia_batch.source.faults import RowFault
from synthia_batch.source.messages import describe
from synthia_batch.source.strict_json import is_blank, parse_json_text

NOTHING = RowSampling()
"""What a row says that leaves all to the job."""


def parse_sampling(value: Any) -> RowSampling:
    """Return what `value` says: an object, its JSON text, or the pairs of a map. Blank and null say nothing.

    A key whose value is null is the job's, too: a Parquet struct has all its keys in every row.

    Raises:
        RowFault: It is anything else, has an unknown key, or a value that does not fit.
    """
    if isinstance(value, str):
        value = None if is_blank(value) else parse_json_text(value, "sampling", subject="")
    if isinstance(value, list) and all(isinstance(pair, tuple) for pair in value):
        value = dict(value)  # As pyarrow gives a map.
    if value is None:
        return NOTHING
    if not isinstance(value, dict):
        raise RowFault(f'must be an object such as {{"temperature": 0}}, not {describe(value)}')
    said = {key: entry for key, entry in value.items() if entry is not None}
    if not said:
        return NOTHING
    try:
        sampling = RowKeys.model_validate(said).to_row()
        if sampling.structure is not None:
            check_structure(sampling.structure)
    except ValidationError as exc:
        raise RowFault(explain_row_fault(exc)) from exc
    except ValueError as exc:
        raise RowFault(f"structured: {exc}") from exc
    return sampling
