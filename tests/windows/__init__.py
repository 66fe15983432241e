"""The store by Windows' own Python, under Wine: `make test-windows` lays it out and runs these."""
