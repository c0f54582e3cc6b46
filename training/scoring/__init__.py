"""A loaded model version and a dataset to tables of scores."""
