"""Two campaigns against the command: faults while it runs, and bad input; see `python -m tests.campaign --help`."""
