"""Networks, and the schedule by which they grow."""
