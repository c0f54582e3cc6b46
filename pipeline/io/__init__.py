"""Object stores, local copies, scratch space, archives: every door to bytes."""
