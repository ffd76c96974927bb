"""Fingerprints of tasks and identities of what they return: pure functions of facts.

A fingerprint names work: equal fingerprints promise equal results. An identity names a result: equal identities promise equal rows, columns
and options. Consumers hash the identities of their inputs, so what an input *is* decides, and not when or by which version it was made.
"""

from __future__ import annotations

import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final, final

from pipedag_core.cache import codec
from pipedag_core.hashing import digest
from pipedag_core.ports.data import Selection, TableOptions

#: Grows when any rule of this file changes; older results are then not found.
FORMAT = "1"


@final
@dataclass(frozen=True, slots=True)
class Fingerprint:
    """What a task would do.

    Attributes:
        full: With the cache function's value.
        base: Without it.
        parts: What went in, part -> short text, for saying what changed.
    """

    full: str
    base: str
    parts: Mapping[str, str]


#: How parts begin that say what a task got and that have no say in whether it runs.
REMEMBERED = "got from "


def nonce() -> str:
    """Return a name that nothing else has: for results that must never be taken for others."""
    return secrets.token_hex(16)


def with_cache_value(base: str, cache_value: str | None) -> str:
    """Return the key that also depends on the cache function's value; the base itself where there is no cache function."""
    return base if cache_value is None else digest("cache", base, cache_value)


def task_fingerprint(
    *, stage: str, task: str, kind: str, token: str, arguments: str, cache_value: str | None, parts: Mapping[str, str]
) -> Fingerprint:
    """Return the fingerprint of a versioned, lazy or auto-versioned task.

    Args:
        stage, task: Normalised names (the task's own name, not its id: equal calls in one stage do equal work).
        kind: "version", "auto" or "lazy".
        token: The version; the traced expression; the queries.
        arguments: All arguments as canonical JSON, with inputs as their identities.
        cache_value: The cache function's value as canonical JSON; None without a cache function.
        parts: What went in, for messages.
    """
    base = digest("task", FORMAT, stage, task, kind, token, arguments)
    return Fingerprint(with_cache_value(base, cache_value), base, parts)


def options_text(options: TableOptions) -> str:
    """Return declared options as canonical text."""
    return _NO_OPTIONS_TEXT if options == _NO_OPTIONS else _options_text(options)


def _options_text(options: TableOptions) -> str:
    return codec.dumps(
        [
            options.primary_key,
            options.indexes,
            sorted(options.type_map.items()),
            None if options.nullable is None else sorted(options.nullable),
            None if options.non_nullable is None else sorted(options.non_nullable),
            options.materialization_details,
            *([options.contract] if options.contract else []),
        ]
    )


_NO_OPTIONS: Final = TableOptions()
_NO_OPTIONS_TEXT: Final = _options_text(_NO_OPTIONS)


def content_identity(content_hash: str, options: TableOptions) -> str:
    """Return the identity of a table whose content is known. The content hash covers the schema; what stands behind `#` in it, the order of rows, is left out."""
    return digest("content", FORMAT, content_hash.partition("#")[0], options_text(options))


def view_identity(selection: Selection, sources: Sequence[str]) -> str:
    """Return the identity of a view: what it selects, from what."""
    return digest("view", FORMAT, codec.dumps([selection.columns, selection.sort_by, selection.limit, sources]))


def external_key(*, stage: str, task: str, version: str, owner: str, name: str) -> str:
    """Return the key under which a task's table that somebody else owns is found, without the cache function's value."""
    return digest("external", FORMAT, stage, task, version, owner, name)


def external_identity(owner: str, name: str, salt: str) -> str:
    """Return the identity of a table that somebody else owns; nobody can see what it holds, so only `salt` tells one state from another."""
    return digest("external table", FORMAT, owner, name, salt)


def query_key(*, stage: str, task: str, version: str, canonical: str, options: TableOptions) -> str:
    """Return the key under which the result of a lazy task's query is found, without the cache function's value."""
    return digest("query", FORMAT, stage, task, version, canonical, options_text(options))


def result_identity(fingerprint: str, path: str, options: TableOptions, salt: str = "") -> str:
    """Return the identity of a table whose content is not known: it is what its fingerprint says, or, with a salt, nothing else's equal."""
    return digest("result", FORMAT, fingerprint, path, options_text(options), salt)


def short(text: str) -> str:
    """Return a short hash, for parts that are too long to be shown."""
    return digest("part", text)[:12]


def explain(before: Mapping[str, str] | None, now: Mapping[str, str]) -> str:
    """Say why a stored result did not stand in.

    Args:
        before: Parts of the task's last result, or None.
        now: Parts of today's fingerprint. Keys are `version`, or `<what>` and `<what> <where>` as they are to be read.

    Returns:
        For instance "version 1.0 -> 1.1, input flights changed", or "first run".
    """
    if before is None:
        return "first run"
    reasons: list[str] = []
    for key in [*now, *(key for key in before if key not in now)]:
        if key.startswith(REMEMBERED):
            continue
        old, new = before.get(key), now.get(key)
        if old == new:
            continue
        if key == "version":
            reasons.append(f"version {old or 'none'} -> {new or 'none'}")
        elif old is None:
            reasons.append(f"{key} is new")
        elif new is None:
            reasons.append(f"{key} is gone")
        else:
            reasons.append(f"{key} changed")
    if len(reasons) > MOST_REASONS:
        reasons[MOST_REASONS:] = [f"and {len(reasons) - MOST_REASONS} more"]
    return ", ".join(reasons)


#: Reasons that are listed before the rest is only counted.
MOST_REASONS = 4
