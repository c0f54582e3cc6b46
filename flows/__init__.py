"""Prefect flows, deployments and the command line: settings, one call, an artifact."""
