"""One run from start to end: training, dry runs, the arms of a comparison, exit codes."""
