"""Checkpoints: what they hold, writing, reading, resuming, export."""
