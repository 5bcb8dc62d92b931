"""Columns kept from the input, checked against those of the output."""

from pathlib import Path

from synthia_batch.core.errors import UsageError
from synthia_batch.inputs import Columns
from synthia_batch.job.schema import Job


def check_kept_columns(columns: Columns, job: Job, shown: Path | str) -> None:
    """Return if no kept column has the name of a column that the job's output has.

    Raises:
        UsageError: Some have; all are named.
    """
    if not columns.keep:
        return
    # pyarrow takes half a second to load; few jobs keep columns.
    from synthia_batch.storage.parts.schema import list_data_columns, list_optional

    settings = job.model_dump()
    settings["input"]["columns"] = columns.to_dict()
    outputs = list_data_columns(list_optional(settings))
    present_if = {column.name: column.present_if for column in outputs}
    clashes = [
        _describe_clash(name, present_if[name], job) for name in columns.kept_names if name in present_if
    ]
    if clashes:
        raise UsageError("\n".join(f"{shown}: {clash}" for clash in clashes))


def _describe_clash(name: str, present_if: str | None, job: Job) -> str:
    because = f" (the job sets {present_if})" if present_if is not None else ""
    advice = (
        " (--lora-column keeps it, to record each sample's adapter)"
        if name == job.lora.column
        else f", or in the output: --rename-column {name}=NEW_NAME"
    )
    return (
        f"column {name!r} cannot be kept: the output has one of that name{because}; "
        f"rename it in the input{advice}"
    )
