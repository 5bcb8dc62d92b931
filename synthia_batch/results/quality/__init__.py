"""What an answer shows by its text alone, and the flags that samples get for it."""
