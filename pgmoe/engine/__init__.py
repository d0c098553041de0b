"""Who runs: requests, steps, sampling, text."""
