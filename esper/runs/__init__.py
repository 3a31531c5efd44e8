"""`esper runs`: find runs, and remove them."""
