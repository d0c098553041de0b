"""What is counted, how it is called, how it is exported."""
