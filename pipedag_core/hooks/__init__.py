"""Table types of other libraries: one file per library, found by the names of types in `registry`."""
