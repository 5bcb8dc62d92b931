"""Selects samples of a complete run; runner/selection.py writes what is kept.

names         what an expression can name of a run
expressions   compiles expressions, and evaluates them for one sample
decide        which samples are kept, and why each of the others is not
"""
