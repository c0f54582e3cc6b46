"""From items to a sealed dataset: parts, manifest, preflight, quarantine."""
