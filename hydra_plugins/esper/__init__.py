"""Esper's plugins for Hydra, which only accepts launchers from `hydra_plugins`."""
