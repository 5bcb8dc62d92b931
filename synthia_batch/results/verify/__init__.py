"""Whether a run directory holds what its run wrote, all of it and nothing else; and mending it.

facts         what the directory says of its run
findings      what can be wrong, and what to do about each
shard_check   one shard: its parts, pages, rows and journal
run_files     the other files: records, manifest, what must not be there
verification  the whole directory
repair        drop exactly what is damaged, so that the next run makes it again
"""
