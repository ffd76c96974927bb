"""How strictly a run trusts what is stored."""

from __future__ import annotations

from enum import Enum


class CacheValidationMode(Enum):
    """How strictly a run trusts what is stored.

    * NORMAL: a stored result stands in if version, query, arguments, inputs and the cache function's value are the same.
    * ASSERT_NO_FRESH_INPUT: as NORMAL, but a task with a cache function, or a lazy task, that would have to run is an error
      (unless it is declared with `allow_fresh_input=True`).
    * IGNORE_FRESH_INPUT: the cache function's value does not count: the newest result that is the same in all else stands in.
    * FORCE_FRESH_INPUT: tasks with a cache function run; all else as NORMAL.
    * FORCE_CACHE_INVALID: everything runs.
    """

    NORMAL = "normal"
    ASSERT_NO_FRESH_INPUT = "assert_no_fresh_input"
    IGNORE_FRESH_INPUT = "ignore_fresh_input"
    FORCE_FRESH_INPUT = "force_fresh_input"
    FORCE_CACHE_INVALID = "force_cache_invalid"
