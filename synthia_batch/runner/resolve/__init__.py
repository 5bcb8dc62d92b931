"""From what was said to a job with no maybes."""

from synthia_batch.models.prompts.tokenizer import open_renderer
from synthia_batch.runner.resolve.resolver import SYSTEM_COLUMN, find_directory, resolve_job, select_rows

__all__ = ["SYSTEM_COLUMN", "find_directory", "open_renderer", "resolve_job", "select_rows"]
