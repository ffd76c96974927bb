"""Connections to databases that hold both tables and catalogs: what stores and catalogs share without knowing each other."""
