"""Whose request it is: tokens, tickets, and the keys that tokens are verified with."""
