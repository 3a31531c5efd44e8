"""Where the jobs of a sweep run: SLURM, or this machine."""
