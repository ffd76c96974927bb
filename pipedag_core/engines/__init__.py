"""What carries out the steps of a plan: one technology per file."""
