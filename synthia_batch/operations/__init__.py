"""One module per use case other than `run`: what a job will take, what it looks like, what is fastest."""
