"""The production flow: carved out of a training flow, frozen, run in memory, kept as a bundle."""
