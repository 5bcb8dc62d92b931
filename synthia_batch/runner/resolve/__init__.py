"""From the declared job to the resolved one."""

from synthia_batch.runner.resolve.resolver import SYSTEM_COLUMN, find_directory, resolve_job, select_rows

__all__ = ["SYSTEM_COLUMN", "find_directory", "resolve_job", "select_rows"]
