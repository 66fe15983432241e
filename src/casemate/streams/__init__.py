"""The poll loop that moves bytes at both ends of a channel; standard library only, also installed in guests."""
