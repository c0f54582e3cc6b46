"""Stain normalisation, fitted once a slide."""
