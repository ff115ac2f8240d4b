"""The commands of `msgpush`, a module a topic. Each is imported when it is asked for."""
