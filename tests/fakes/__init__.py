"""Fakes at the seams, kept honest by the tests that also run against the real thing."""
