-- Run once, when the database server is new: MLflow's own database is there already.
CREATE DATABASE prefect;
