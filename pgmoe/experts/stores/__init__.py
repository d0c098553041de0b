"""Owners of the experts' bytes below the device."""
