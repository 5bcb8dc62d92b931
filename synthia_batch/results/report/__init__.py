"""What a run directory says happened."""
