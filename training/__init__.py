"""Sealed datasets to models, and models to scores."""
