"""The protobuf package `pgmoe.v1`."""
