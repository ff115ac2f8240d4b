"""The metrics, for Prometheus: what they are, where they come from, and their text."""
