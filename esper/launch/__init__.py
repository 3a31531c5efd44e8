"""Starting runs: one run from start to end, and the checks before Hydra makes its folders."""
