"""The shared collection of qubes on disk, under reader/writer locks."""
