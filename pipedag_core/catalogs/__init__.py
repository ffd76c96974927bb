"""Catalogs: where runs, generations, results, stored objects and leases are remembered between steps."""
