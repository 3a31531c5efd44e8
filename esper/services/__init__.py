"""`esper services`: Tamiyo and the forge for many runs."""
