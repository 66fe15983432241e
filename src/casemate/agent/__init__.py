"""What runs inside a guest; standard library, wire, pump and qdb only."""
