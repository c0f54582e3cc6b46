"""Flows about a model and its versions: what became of them, and what a person decides."""
