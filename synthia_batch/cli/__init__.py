"""The command line: parse flags, call one operation, print its answer, exit with a code."""
