"""Finds the files that an input names, and normalizes them to JSONL or Parquet on this machine."""
