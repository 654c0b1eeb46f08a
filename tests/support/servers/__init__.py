"""Real servers for the tests, started and stopped by fixtures: see fixtures.py for how to use them."""
