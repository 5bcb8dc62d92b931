"""Selects samples of a complete run, in three steps.

expressions   compiles the job's expressions, and evaluates them for one sample
decide        which samples are kept, and why each of the others is not
run           the run directory of the selection: the same columns, files and guarantees
"""
