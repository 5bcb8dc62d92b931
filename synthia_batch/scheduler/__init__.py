"""Assigns requests to workers, and decides what the death of a worker means."""
