"""The ports within one process: nothing outlives it."""
