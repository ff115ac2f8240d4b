"""Authentication: tokens, tickets, and the keys that tokens are verified with."""
