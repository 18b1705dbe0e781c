"""Tools for testing programs that use openline, and openline itself."""
