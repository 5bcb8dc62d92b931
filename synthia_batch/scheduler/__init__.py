"""Which request goes to which worker, and what the death of a worker means."""
