"""Calls between qubes: policy and broker."""
