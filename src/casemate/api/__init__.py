"""The Admin API: methods, server, permissions, events."""
