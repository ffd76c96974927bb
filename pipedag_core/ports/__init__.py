"""What a store, catalog, hook, engine or observer must do: small protocols whose docstrings are promises."""
