"""Code of our own for CPUs."""
