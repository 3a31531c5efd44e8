"""The reference of all settings: `esper help`, docs/settings.md."""
