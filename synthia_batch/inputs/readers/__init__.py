"""Reads JSONL and Parquet: one scan that checks every row, then any range of rows."""
