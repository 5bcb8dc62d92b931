"""The report and the dataset card of a run."""
