"""Training: the loop, what it measures, and what it leaves in the run directory."""
