"""When a stored result may stand in for running a task: fingerprints, the value codec, validation modes. Pure."""
