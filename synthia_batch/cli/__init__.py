"""TODO: one sentence on cli."""
