"""Small recordings of our own networks and losses, and how they are made."""
