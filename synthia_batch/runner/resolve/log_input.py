"""Messages about how the input is read."""

import logging
from pathlib import Path

from synthia_batch.core.errors import ModelElsewhere
from synthia_batch.inputs import Columns
from synthia_batch.inputs.records.columns import describe_unused
from synthia_batch.job.resolved import ModelRef

_log = logging.getLogger(__name__)


def log_columns(columns: Columns, first: Path | str) -> None:
    """Log a detected shape that the user did not set, and the columns that are not used."""
    if columns.shape == "alpaca":
        used = ", ".join(columns.reads)
        _log.info(f"{first}: read as Alpaca: prompts from {used} (--input-format plain: one column)")
    elif columns.shape == "sharegpt" and columns.turns is None:
        _log.info(f"{first}: read as ShareGPT (--turns-column {columns.messages}: every answer is generated)")
    elif columns.shape == "ultrachat":
        _log.info(
            f"{first}: read as UltraChat: {columns.text!r} holds the user's and assistant's texts in turn"
        )
    if columns.tools is not None and columns.tools not in columns.keep and columns.shape != "openai-batch":
        _log.info(
            f"{first}: tools of column {columns.tools!r} are in the prompts, not in the output "
            f"(--keep-columns {columns.tools})"
        )
    if columns.unused:
        _log.info(f"{first}: columns not used: {describe_unused(columns.unused)}")


def log_lacking_model(lacking: ModelElsewhere) -> None:
    """Log why the model is not here, in the first sentence of the error."""
    reason = str(lacking).splitlines()[0].partition("; ")[0]
    _log.info(
        f"{reason}: what depends on its files is unknown here (--here refuses what this machine cannot run)"
    )


def log_other_model(columns: Columns, first: Path | str, model: ModelRef) -> None:
    """Log that another model answers than the requests name: that one may not be available here."""
    if columns.model is not None and columns.model not in (model.name, model.repo_id):
        _log.info(
            f"{first}: its requests name the model {columns.model!r}; "
            f"{model.name!r} answers them (--model names another)"
        )
