"""Whole runs under one seed, with everything around them simulated.

schedule     what a seed stands for: a job, and what befalls each attempt to run it
disk, pool, store, world     the disk, the workers, the object store, and what was promised so far
attempt      one process: the package's own session, driver, scheduler, journals and publication
selection, pipeline    a selection of the complete run, and stages that begin with it, ended at any moment
parts        what stands for Parquet in most jobs
invariants   what must be true, a function each
simulate, shrink, __main__   run schedules, make failing ones smaller, the command
shortcuts    what is not simulated: threads, and the text of the dataset card
"""
