"""Runs the steps of a plan as an Airflow DAG: one operator per step, one edge per dependency."""
