"""Files that are whole or not there, files that may lie, and named arrays."""
