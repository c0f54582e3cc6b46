"""Ray: connection, distributed training, trials, mapping work. The only importer of ray."""
