"""What every catalog has to pass: subclass `CatalogContract` and give it the fixture `opener`."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest

from pipedag_core.ports.catalogs import Catalog
from pipedag_core.testing.catalog_forgetting_contract import ForgettingContract
from pipedag_core.testing.catalog_hammer_contract import HammerContract
from pipedag_core.testing.catalog_lease_contract import LeaseContract
from pipedag_core.testing.catalog_result_contract import ResultContract
from pipedag_core.testing.catalog_retention_contract import RetentionContract
from pipedag_core.testing.catalog_rollback_contract import RollbackContract
from pipedag_core.testing.catalog_samples import Clock


class CatalogContract(LeaseContract, ResultContract, RetentionContract, RollbackContract, ForgettingContract, HammerContract):
    """All suites together.

    Subclasses override the fixture `opener`.
    """

    @pytest.fixture
    def opener(self) -> Callable[..., Catalog]:
        """Return a function that can be pickled and opens the same, at first empty, catalog with each call; it takes `clock=`."""
        raise NotImplementedError("Override the fixture `opener` in your subclass of CatalogContract.")

    @pytest.fixture
    def clock(self) -> Clock:
        """The catalog's time."""
        return Clock()

    @pytest.fixture
    def catalog(self, opener: Callable[..., Any], clock: Clock) -> Iterator[Catalog]:
        """An open catalog."""
        opened = opener(clock=clock)
        yield opened
        opened.close()
