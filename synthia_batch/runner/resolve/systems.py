"""The system messages of a job: which applies to which rows, and where it comes from."""

import logging

from synthia_batch.core.errors import UsageError
from synthia_batch.inputs import Columns
from synthia_batch.job.loading.merge import Merged
from synthia_batch.job.resolved import PlanSpec, SystemText
from synthia_batch.models.prompts.system_messages import (
    NO_SYSTEM_MESSAGE,
    SystemMessage,
    select_system_message,
)

_log = logging.getLogger(__name__)

SYSTEM_COLUMN = "column"
"""The name of a system message that comes from the row's system column."""


def refuse_two_systems(merged: Merged) -> None:
    """Raise UsageError if a job names its system messages in two ways."""
    if merged.job.input.system_column and merged.is_explicit("system"):
        raise UsageError("--system and --system-column are both set; set only one of the two")


def choose_systems(merged: Merged, columns: Columns) -> PlanSpec:
    """Return the job's samples per row: its system messages, and whether they replace the rows' own.

    Raises:
        UsageError: One cannot be read, is named twice, or would remove rows' own without being told to.
    """
    job = merged.job
    is_chosen = merged.is_explicit("system")
    if job.input.system_column:
        systems = [SystemText(name=SYSTEM_COLUMN, text="")]
    elif columns.brings_system and not is_chosen:  # Conversations are asked as they were written.
        systems = [SystemText(name=NO_SYSTEM_MESSAGE, text="")]
    else:
        chosen = [_select_system(merged, number) for number in range(len(job.system))]
        systems = [SystemText(name=message.name, text=message.text) for message in chosen]
    has_texts = is_chosen and any(system.text for system in systems)
    if has_texts and columns.brings_system and not job.replace_system and not all(s.text for s in systems):
        raise UsageError(
            f"--system {NO_SYSTEM_MESSAGE} beside others would remove the rows' own system messages; add "
            "--replace-system to do that, or leave it out"
        )
    # A prompt has no system message of its own, and a blank column value replaces none.
    replaces = not columns.brings_system or (not columns.system and (has_texts or job.replace_system))
    names = [system.name for system in systems]
    if not names or len(set(names)) < len(names):
        raise UsageError(f"--system: {', '.join(names) or 'none at all'}; name each system message once")
    return PlanSpec(
        systems=tuple(systems),
        system_column=job.input.system_column,
        replace_own_system=replaces,
        num_samples=job.num_samples,
        seed=job.seed,
        plays_turns=columns.turns is not None,
        samples_per_file=job.samples_per_file,
    )


def _select_system(merged: Merged, number: int) -> SystemMessage:
    is_list = len(merged.job.system) > 1
    with merged.locate_errors(f"system.{number}" if is_list else "system"):
        return select_system_message(merged.job.system[number])


def log_systems(merged: Merged, columns: Columns, plan: PlanSpec) -> None:
    """Log which system message applies to which rows, and where it comes from."""
    origin = merged.origins.get("system", "default")
    names = " and ".join(system.name for system in plan.systems)
    if plan.system_column is not None:
        text = f"from column {plan.system_column!r}"
    elif columns.brings_system and not merged.is_explicit("system"):
        text = "none"
    else:
        text = f"{names} ({origin})"
    if columns.brings_system and not plan.replace_own_system:
        text = f"each row's own; for rows without one {text}"
    elif columns.brings_system:
        text += ", in place of the rows' own"
    _log.info(f"system message: {text}")
