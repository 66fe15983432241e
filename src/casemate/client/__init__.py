"""Blocking client library of the Admin API."""
