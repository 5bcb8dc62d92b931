"""Models: from a name to a directory of files, and what those files say."""
