"""The protobuf package `pgmoe`."""
