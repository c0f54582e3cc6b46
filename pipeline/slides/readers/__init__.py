"""Readers of slide formats behind one interface; `registry.open_slide` chooses among them."""
