"""From `pipedag.yaml`, or a dict, to frozen settings, and from settings to opened parts."""
