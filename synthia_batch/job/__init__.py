"""The job: what the user declares, in flags or YAML, and what becomes of it once resolved."""
