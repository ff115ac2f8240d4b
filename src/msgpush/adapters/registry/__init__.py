"""Registries: what tells a gateway or a proxy which instances of the service there are."""
