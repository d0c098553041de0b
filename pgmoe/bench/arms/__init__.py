"""What is measured: ways to run one and the same checkpoint."""
