"""What runs: checkpoints, families, and the seam for routed experts."""
