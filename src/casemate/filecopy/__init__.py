"""Copies files between qubes in the qfile format; standard library only, also installed in guests."""
