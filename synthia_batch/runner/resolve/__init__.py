"""From the declared job to the resolved one."""

from synthia_batch.runner.resolve.resolver import find_directory, resolve_job, select_rows
from synthia_batch.runner.resolve.systems import SYSTEM_COLUMN

__all__ = ["SYSTEM_COLUMN", "find_directory", "resolve_job", "select_rows"]
