"""`esper doctor`: whether everything is there that a run needs."""
