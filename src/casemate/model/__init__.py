"""What qubes are: synchronous, no I/O, no clock, no randomness."""
