"""`esper watch`: a page over running experiments, served to this machine only."""
