"""Frozen dataclasses and enums shared by the packages: lifecycle, health, decisions, events, messages. stdlib only."""
