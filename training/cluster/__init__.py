"""Ray: connection, distributed training, mapping work. The only importer of ray, with search."""
