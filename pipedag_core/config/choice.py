"""Which settings hold: for those who may be given a configuration, an instance, or nothing at all."""

from __future__ import annotations

from pathlib import Path

from pipedag_core.config.context import ConfigContext, PipedagConfig
from pipedag_core.errors import ConfigError


def configuration(
    config: PipedagConfig | ConfigContext | None, instance: str | None, flow: str | None, *, per_user: bool = False
) -> ConfigContext:
    """Return the instance's configuration for a flow."""
    given: object = config
    if given is not None and not isinstance(given, (ConfigContext, PipedagConfig)):
        hint = (
            f"Write config=PipedagConfig({'...' if not isinstance(given, str) else repr(given)})."
            if isinstance(given, (dict, str, Path))
            else ""
        )
        raise ConfigError(
            f"config= takes a PipedagConfig, or a ConfigContext as its get() returns it, not {type(given).__name__}. {hint}".rstrip()
        )
    if isinstance(config, ConfigContext):
        if per_user:
            raise ConfigError(
                "per_user cannot change a ConfigContext. Make it with PipedagConfig.get(..., per_user=True), or pass the PipedagConfig."
            )
        if instance is not None and instance != config.instance_name:
            raise ConfigError(
                f"The configuration given is that of instance {config.instance_name!r}, but instance {instance!r} was asked for. Pass one of the two."
            )
        return config
    return (config or PipedagConfig.default).get(instance=instance, flow=flow, per_user=per_user)
