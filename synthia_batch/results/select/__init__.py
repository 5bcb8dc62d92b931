"""Selects samples of a complete run; runner/selection.py writes what is kept.

names         what an expression can name of a run
combine       makes one value of what several samples say
compare, near what equal values have in common, and how similar two texts are
benchmark     which texts share words with those of a benchmark
decide        which samples are kept
verdicts      what becomes of each sample, and why
"""
