"""Where the jobs of a sweep run: on a SLURM cluster or on this machine."""
