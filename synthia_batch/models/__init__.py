"""Models: from a name to a directory of files, and the facts read from those files."""
