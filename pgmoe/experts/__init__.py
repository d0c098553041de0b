"""Where the bytes are: slots, cache, stores, links, and computing from them."""
