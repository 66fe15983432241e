"""Both ends of a qrexec call, over any stream; standard library only, also installed in guests."""
