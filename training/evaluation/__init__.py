"""Metrics, intervals, subgroups, calibration: arrays in, numbers out."""
