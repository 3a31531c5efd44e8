"""What `esper-train` prints: live panel, lines, final table."""
