"""The ports over Redis, for any number of processes."""
