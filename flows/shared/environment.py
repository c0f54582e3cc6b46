"""Imported for its effect: sets what Ray, MLflow and the rest read while they are imported.

Every flow imports this before it imports `training`, so that a flow behaves alike in a worker
that somebody else has started.
"""

from __future__ import annotations

import logging

from flows.shared.logs import use_log_format
from flows.shared.settings import load_settings

use_log_format(load_settings())
for _package in ("flows", "training", "pipeline"):
    # Prefect takes these loggers' lines to its pages, but leaves them at the root's level.
    logging.getLogger(_package).setLevel(logging.INFO)
