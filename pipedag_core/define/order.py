"""Topological order that keeps the given order wherever it can."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from heapq import heapify, heappop, heappush
from typing import TypeVar

T = TypeVar("T")


class Loop(Exception):
    """Things need each other.

    Attributes:
        path: The things in order, each needing the one before it; the first one again at the end.
    """

    def __init__(self, path: list[object]) -> None:
        super().__init__(path)
        self.path = path


def stable_order(items: Iterable[T], needs: Mapping[T, Iterable[T]]) -> list[T]:
    """Return the items in an order in which each comes after all that it needs; among those that could come next, the first one given.

    Args:
        items: All items, in the order to be kept where possible.
        needs: Item -> what must come before it. What is not among the items is ignored.

    Raises:
        Loop: There is no such order.
    """
    all_items = list(items)
    number = {item: index for index, item in enumerate(all_items)}
    followers: dict[T, list[T]] = {item: [] for item in all_items}
    missing: dict[T, int] = dict.fromkeys(all_items, 0)
    for item in all_items:
        for need in {other: None for other in needs.get(item, ()) if other in number}:
            followers[need].append(item)
            missing[item] += 1
    ready = [number[item] for item in all_items if not missing[item]]
    heapify(ready)
    result: list[T] = []
    while ready:
        item = all_items[heappop(ready)]
        result.append(item)
        for follower in followers[item]:
            missing[follower] -= 1
            if not missing[follower]:
                heappush(ready, number[follower])
    if len(result) < len(all_items):
        raise Loop(_loop([item for item in all_items if missing[item]], needs))
    return result


def _loop(left: list[T], needs: Mapping[T, Iterable[T]]) -> list[object]:
    # Each item that is left over needs another one that is left over, so going on and on meets one again.
    among = set(left)
    path = [left[0]]
    while True:
        item = next(need for need in needs.get(path[-1], ()) if need in among)
        if item in path:
            return [item, *reversed(path[path.index(item) :])]
        path.append(item)
