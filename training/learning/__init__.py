"""Training in one process: loop, state, checkpoints, validation; no Ray, no MLflow."""
