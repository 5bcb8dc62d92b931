"""From flags, environment and job files to a declared job, with the place of every fault."""
