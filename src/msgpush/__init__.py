"""msgpush: publish over HTTP, receive over Server-Sent Events, live and without loss."""

__version__ = "0.1.0"
