"""From what a job names as its input to plain files on this machine, one after the other."""

from synthia_batch.intake.taking import Taken, TakenInput, digest_files, take_in

__all__ = ["Taken", "TakenInput", "digest_files", "take_in"]
