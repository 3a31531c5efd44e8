"""Reports of runs: statistics, plots and pages."""
