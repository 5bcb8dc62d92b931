"""From one record of a file to a checked row."""
