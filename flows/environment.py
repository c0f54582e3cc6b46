"""Imported for its effect: sets the variables that Ray, MLflow and the rest read when imported.

Every flow imports this before it imports `training`, so that a flow behaves alike in a worker
that somebody else has started.
"""

from __future__ import annotations

from flows.settings import load_settings

load_settings()
