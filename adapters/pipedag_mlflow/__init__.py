"""Logs the runs of a flow to MLflow, and production flows as models."""
