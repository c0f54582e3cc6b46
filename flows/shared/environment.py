"""Imported for its effect: sets what Ray, MLflow and the rest read while they are imported.

Every flow imports this before it imports `training`, so that a flow behaves alike in a worker
that somebody else has started.
"""

from __future__ import annotations

from flows.shared.logs import show_own_loggers, use_log_format
from flows.shared.settings import load_settings

use_log_format(load_settings())
show_own_loggers()
