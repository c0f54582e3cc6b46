"""Generators of synthetic scans with planted anomalies, for the demo and the tests."""
