"""Shows the tables of a flow as Dagster assets, and materializes them by running the steps of a plan."""
