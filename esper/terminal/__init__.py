"""What `esper-train` prints: live panel, lines, tables."""
