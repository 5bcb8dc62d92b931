"""The run directory while it is written."""
