"""Pictures of a run, a page about it, and the numbers in them."""
