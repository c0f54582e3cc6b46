"""Sealed datasets to batches for training and scoring."""
