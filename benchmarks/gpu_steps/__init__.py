"""The steps of benchmarks/gpu_check.py. Each module has functions from a Setting to a Result."""
