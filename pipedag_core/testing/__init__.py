"""For authors of stores, hooks and engines: suites of tests that every implementation of a port passes, and what they are made with."""
