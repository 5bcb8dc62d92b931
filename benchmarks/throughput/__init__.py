"""One job, made by synthia-batch and by what a user would take instead. `__main__` is the way in.

`sides` says how each side is started and what it left; `workload` is the job; `process` runs a side
in a clean process; `measures` and `report` turn what was seen into numbers and tables.
"""
