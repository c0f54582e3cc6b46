"""From a plan to a sealed dataset: shards, manifest, preflight, quarantine."""
