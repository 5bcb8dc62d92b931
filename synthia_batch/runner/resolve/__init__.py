"""From what was said to a job with no maybes."""

from synthia_batch.runner.resolve.resolver import SYSTEM_COLUMN, find_directory, resolve_job, select_rows

__all__ = ["SYSTEM_COLUMN", "find_directory", "resolve_job", "select_rows"]
