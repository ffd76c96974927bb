"""Where tables live: one technology per file, each behind the promises of `pipedag_core.ports.stores`."""
