"""Measures the service beside floors that do nothing but the I/O."""
