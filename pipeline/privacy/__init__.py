"""Pseudonyms, and what is kept out of messages."""
