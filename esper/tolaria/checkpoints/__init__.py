"""Checkpoints: contents, files, writer thread, resume, export."""
