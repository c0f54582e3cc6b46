"""Commands that are plain functions: no flows, so that they need no server."""
