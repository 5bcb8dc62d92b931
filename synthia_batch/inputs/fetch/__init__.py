"""Finds the files that an input names, and makes them plain JSONL or Parquet files on this machine."""
