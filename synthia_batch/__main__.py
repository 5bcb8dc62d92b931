"""`python -m synthia_batch`: the same as the command `synthia-batch`."""

from synthia_batch.cli.app import main

main()
