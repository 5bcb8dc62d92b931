"""The read API: a run's samples, counts, history and failures."""
