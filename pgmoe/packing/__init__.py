"""Writing checkpoints anew as packs, and checking them."""
