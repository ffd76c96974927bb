"""Blob stores: where Python objects that are not tables are kept."""
