"""TODO: one sentence on report."""
