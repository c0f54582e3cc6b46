"""Runs, versions, gate, promotion, ledger. The only importer of mlflow."""
