"""The `pgmoe` command: one module a subcommand."""
