"""What Normscope runs on: servers for tests, the container image, manifests."""
