"""Engines that run work, and what they ask of memory."""
