"""Measures the same work side by side: the parts of `tools/benchmark.py`."""
