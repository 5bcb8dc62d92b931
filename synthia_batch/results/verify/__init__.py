"""Checks that a run directory holds exactly what its run wrote, and repairs it.

facts      facts about a run, from its directory
findings   possible damage, and the remedy for each kind
shard      checks one shard: its parts, pages, rows and journal
run_files  checks the other files: records, manifest, leftover and unknown files
verify     checks the whole directory
repair     removes what is damaged, so that the next run regenerates it
"""
