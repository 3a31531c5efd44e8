"""Write docs/settings.md, the reference of all settings, from their declarations and YAML files."""

from __future__ import annotations

from pathlib import Path

from esper.reference.command import settings_page

if __name__ == "__main__":
    (Path(__file__).resolve().parents[1] / "docs" / "settings.md").write_text(settings_page(), encoding="utf-8")
