"""What runs inside a guest; standard library, wire, streams, calls, filecopy and qdb only."""
