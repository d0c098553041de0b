"""What several test folders share: tiny checkpoints and plain reference parts."""
