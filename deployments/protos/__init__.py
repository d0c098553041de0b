"""Protobuf packages; `generate.py` writes the Python modules beside each `.proto`."""
