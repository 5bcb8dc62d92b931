"""The read API: samples, counts, history and failures of a run."""
