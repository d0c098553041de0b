"""Measuring engines beside each other: same checkpoint, same tokens, one interleaved run."""
