"""Growth during a run: when to consult Tamiyo, the seeds' lifecycle, incubation, judging, forks."""
