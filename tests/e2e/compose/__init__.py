"""The Compose file, built, run and crashed with podman."""
