"""Command-line tools: one module a tool, main(argv) -> exit status."""
