"""The local stack: Prefect, MLflow and Ray as processes on this machine."""
