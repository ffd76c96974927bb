"""Faults that crashes and crowds have brought to light, one test each."""

from __future__ import annotations

from dataclasses import replace

import polars as pl
import pytest
import sqlalchemy as sa

from pipedag_core import Flow, Stage, Table, materialize
from pipedag_core.config.wire import open_session
from pipedag_core.ports.catalogs import Retention
from pipedag_core.ports.events import PointReached
from pipedag_core.run.showing import refresh_names, shown_tables


def test_a_query_does_not_take_away_the_table_that_is_called_tmp_and_its_name(config, tables_of):
    @materialize(version="1.0")
    def kept():
        return Table(pl.DataFrame({"x": [1]}), "tmp_t")

    @materialize(lazy=True, input_type=sa.Table)
    def query(table):
        return Table(sa.select((table.c.x + 1).label("x")), "t")

    with Flow("f") as flow, Stage("s"):
        query(kept())
    flow.run(config=config, fail_fast=True)
    assert {name: frame["x"].to_list() for name, frame in tables_of(config)["s"].items()} == {"tmp_t": [1], "t": [2]}


@pytest.mark.parametrize("options", [{}, {"lazy": True}, {"version": "1.0"}], ids=["never cached", "lazy", "version"])
def test_a_task_is_decided_again_when_clean_up_takes_what_it_was_to_point_to(config, tables_of, options):
    """Another run's clean-up comes between finding an old table with the same content and recording that this one points to it."""

    class CleanUp:
        armed = False

        def on_event(self, event):
            if self.armed and isinstance(event, PointReached) and event.point == "before_record":
                self.armed = False
                with open_session(config) as other:
                    garbage = other.catalog.expire(Retention(committed=1, failed=0, minimum_age_s=0))
                    other.tables.drop([item.location for item in garbage.objects])
                    assert garbage.objects

    clean_up = CleanUp()

    def run(value, version):
        @materialize(name="task", **({**options, "version": version} if "version" in options else options))
        def task():
            return pl.DataFrame({"value": [value]})

        with Flow("f") as flow, Stage("s"):
            task()
        return flow.run(config=config, observers=[clean_up], fail_fast=True)

    run("old", "1")
    run("new", "2")
    clean_up.armed = True
    assert run("old", "3").successful
    assert not clean_up.armed
    assert tables_of(config)["s"]["task"]["value"].to_list() == ["old"]


def test_what_is_committed_while_readable_names_are_refreshed_is_shown(config):
    """A slow run, between looking at the catalog and refreshing the names, is overtaken by another one that commits and refreshes them."""

    def run(value):
        @materialize
        def task():
            return pl.DataFrame({"value": [value]})

        with Flow("f") as flow, Stage("s"):
            task()
        flow.run(config=config, fail_fast=True)

    class Overtaken:
        """The store, before whose first refresh another run comes to its end."""

        def __init__(self, store):
            self._store = store
            self._overtaken = False

        def __getattr__(self, name):
            return getattr(self._store, name)

        def show(self, stages):
            if not self._overtaken:
                self._overtaken = True
                run(2)
            self._store.show(stages)

    run(1)
    with open_session(config) as session:
        (session.tables.base_path / "explore.duckdb").unlink()
        refresh_names(replace(session, tables=Overtaken(session.tables)))
        assert session.tables.shows(shown_tables(session))
