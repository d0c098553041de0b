"""Keys and values of all sequences in one pool of blocks, and attention over them."""
