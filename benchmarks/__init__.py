"""Side-by-side measurements against peers, and their dated results."""
