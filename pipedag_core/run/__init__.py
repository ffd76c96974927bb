"""The life of one step: what `execute` does, whoever calls it."""
