"""Sweeps as jobs: manifest, queues, status, resume."""
