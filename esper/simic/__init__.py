"""Simic: learning a Tamiyo policy from recorded runs."""
