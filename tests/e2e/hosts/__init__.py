"""The whole chain on hosts that share nothing but a network."""
