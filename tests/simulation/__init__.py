"""Whole runs under one seed, with everything around them simulated: see README in `__main__`."""
