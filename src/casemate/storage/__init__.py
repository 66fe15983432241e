"""Volumes of qubes: pools and their drivers."""
