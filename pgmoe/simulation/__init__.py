"""What a cache would have done on a recorded trace: bookkeeping only, no bytes move."""
