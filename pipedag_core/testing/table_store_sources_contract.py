"""What every table store has to pass about what is read without having been written: views, and tables that somebody else owns."""

from __future__ import annotations

from collections.abc import Callable

import pyarrow as pa
import pytest

from pipedag_core.arrow_schema import selected, to_arrow
from pipedag_core.errors import ConfigError, StoredDataMissing, StoreError
from pipedag_core.ports.data import BatchData, BatchSource, ExternalTable, Form, Selection, StoredTable, StoredView, TableSource
from pipedag_core.ports.stores import TableStore
from pipedag_core.testing.table_store_samples import ask, keep, prepare, rows

#: Makes a table as somebody else would, and returns schema and name by which a reference names it.
MakeExternal = Callable[[pa.Table], tuple[str, str]]


def view(*sources: TableSource, selection: Selection, identity: str = "identity-of-view") -> StoredView:
    """Return a loaded view."""
    columns = selection.columns or tuple((name, name) for name in sources[0].schema.names)
    schema = selected([source.schema for source in sources], columns)
    return StoredView(sources, Selection(columns, selection.sort_by, selection.limit), identity, schema)


class TableStoreSourcesContract:
    """Views and tables of others; part of `TableStoreContract`. The fixture `make_external` is for the store's own class to give."""

    @pytest.fixture
    def make_external(self) -> MakeExternal:
        """Return what makes a table as somebody else would."""
        raise NotImplementedError("Override the fixture `make_external` in your subclass of TableStoreContract.")

    @pytest.fixture
    def people(self, store: TableStore) -> StoredTable:
        """A stored table with nulls."""
        table = pa.table({"id": [3, 1, 2, None], "name": ["c", "a", None, "d"], "x": [0.5, 1.5, 2.5, float("inf")]})
        with store.session("f.people") as session:
            return keep(session, BatchData(lambda: table, in_memory=True), "people", identity="identity-of-people")

    @pytest.fixture
    def more(self, store: TableStore) -> StoredTable:
        """A stored table whose columns are in another order."""
        table = pa.table({"name": ["e"], "x": [9.0], "id": [9]})
        with store.session("f.more") as session:
            return keep(session, BatchData(lambda: table, in_memory=True), "more", identity="identity-of-more")

    def test_a_table_can_be_read_as_one_of_others_by_all_that_reach_the_same(self, store: TableStore, people: StoredTable) -> None:
        table = pa.table({"id": pa.array([1], pa.uint8()), "kind": pa.array(["a"]).dictionary_encode()})
        with store.session("f.kinds") as session:
            typed = keep(session, BatchData(lambda: table, in_memory=True), "kinds/of 100%")
        with store.session("f.t") as session:
            for stored in (people, typed):
                seen = store.seen_by_others(stored)
                assert (seen.identity, seen.schema) == (stored.identity, stored.schema)
                for form in store.capabilities.reads:
                    assert rows(session, seen, form) == rows(session, stored, form)
            seen = store.seen_by_others(people)
            assert ask(session, "SELECT count(*) AS n FROM pipedag__in.people", people=seen) == [{"n": 4}]
        assert store.address

    # --- views ----------------------------------------------------------------------------------------------------------------------

    def test_a_view_selects_and_renames(self, store: TableStore, people: StoredTable) -> None:
        chosen = view(people, selection=Selection((("key", "id"), ("x", "x"))))
        with store.session("f.t") as session:
            assert _sorted(rows(session, chosen)) == _sorted(
                [{"key": 3, "x": 0.5}, {"key": 1, "x": 1.5}, {"key": 2, "x": 2.5}, {"key": None, "x": float("inf")}]
            )
            assert chosen.schema.names == ("key", "x")

    @pytest.mark.parametrize(
        ("key", "ids"),
        [
            (("id", False, False), [1, 2, 3, None]),
            (("id", True, False), [3, 2, 1, None]),
            (("id", False, True), [None, 1, 2, 3]),
            (("id", True, True), [None, 3, 2, 1]),
        ],
    )
    def test_a_view_has_its_order_and_its_limit(
        self, store: TableStore, people: StoredTable, key: tuple[str, bool, bool], ids: list[int | None]
    ) -> None:
        with store.session("f.t") as session:
            for limit in (None, 2, 0):
                chosen = view(people, selection=Selection((("name", "name"), ("key", "id")), (key,), limit))
                assert [row["key"] for row in rows(session, chosen)] == ids[:limit]

    def test_a_view_can_sort_by_what_it_leaves_out(self, store: TableStore, people: StoredTable) -> None:
        with store.session("f.t") as session:
            chosen = view(people, selection=Selection((("name", "name"),), (("x", True, False),), 3))
            assert [row["name"] for row in rows(session, chosen)] == ["d", None, "a"]

    def test_rows_of_several_tables_go_below_each_other_by_name(self, store: TableStore, people: StoredTable, more: StoredTable) -> None:
        with store.session("f.t") as session:
            both = view(people, more, selection=Selection(None, (("x", False, False),)))
            assert [row["id"] for row in rows(session, both)] == [3, 1, 2, 9, None]
            twice = view(more, more, selection=Selection((("id", "id"),)))
            assert rows(session, twice) == [{"id": 9}, {"id": 9}]

    def test_a_view_can_select_from_views(self, store: TableStore, people: StoredTable, more: StoredTable) -> None:
        inner = view(people, selection=Selection((("k", "id"), ("n", "name")), (("id", False, False),), 2))
        other = view(more, selection=Selection((("n", "name"), ("k", "id"))))
        with store.session("f.t") as session:
            assert rows(session, view(inner, other, selection=Selection((("key", "k"),), (("k", True, False),)))) == [
                {"key": 9},
                {"key": 2},
                {"key": 1},
            ]

    def test_a_view_comes_in_every_offered_form_but_files_with_its_own_types(self, store: TableStore, people: StoredTable) -> None:
        chosen = view(people, selection=Selection((("id", "id"), ("name", "name")), (("id", False, False),)))
        expected = [{"id": 1, "name": "a"}, {"id": 2, "name": None}, {"id": 3, "name": "c"}, {"id": None, "name": "d"}]
        with store.session("f.t") as session:
            for form in store.capabilities.reads - {Form.FILES}:
                assert rows(session, chosen, form) == expected
            source = session.read(chosen, Form.BATCHES)
            assert isinstance(source, BatchSource)
            assert pa.RecordBatchReader.from_stream(source.stream).read_all().schema == to_arrow(chosen.schema)

    def test_a_query_sees_a_view_where_it_would_see_a_table(self, store: TableStore, people: StoredTable, more: StoredTable) -> None:
        chosen = view(people, more, selection=Selection((("key", "id"),), (("id", False, False),), 2))
        with store.session("f.t") as session:
            for sql in (
                "SELECT v.key FROM pipedag__in.v ORDER BY v.key",
                'SELECT w.key FROM "pipedag__in"."v" AS w ORDER BY w.key',
                "SELECT key FROM pipedag__in.v JOIN pipedag__in.p AS p ON p.id = v.key ORDER BY 1",
            ):
                assert ask(session, sql, v=chosen, p=people) == [{"key": 1}, {"key": 2}]
            prepared = prepare(session, "SELECT key FROM pipedag__in.v", v=chosen)
            assert "identity-of-view" in prepared.canonical
            assert people.identity not in prepared.canonical
            assert '"raw"."people"' in prepared.readable

    def test_strange_names_in_a_view_are_just_names(self, store: TableStore) -> None:
        names = ['quo"te', "a b", "pipedag__v", "select", 'x"; drop table y; --', "größe"]
        table = pa.table([[2, 1]] * len(names), names=names)
        with store.session("f.t") as session:
            stored = keep(session, BatchData(lambda: table, in_memory=True))
            chosen = view(stored, selection=Selection(tuple((f"new {name}", name) for name in names), ((names[0], False, False),)))
            assert rows(session, chosen) == [{f"new {name}": number for name in names} for number in (1, 2)]

    def test_a_view_of_a_dropped_table_says_which_one_it_misses(self, store: TableStore, people: StoredTable, more: StoredTable) -> None:
        both = view(people, more, selection=Selection((("id", "id"),)))
        store.drop([more.location])
        with store.session("f.t") as session:
            for form in store.capabilities.reads - {Form.FILES}:
                with pytest.raises(StoredDataMissing, match=r"raw\.more"):
                    rows(session, both, form)

    # --- tables of others -----------------------------------------------------------------------------------------------------------

    def test_a_table_of_somebody_else_is_read_in_every_offered_form(self, store: TableStore, make_external: MakeExternal) -> None:
        table = pa.table({"id": pa.array([1, None], pa.int64()), "name": ["Ä", None], "x": [0.5, 2.0]})
        owner, name = make_external(table)
        with store.session("f.t") as session:
            columns = session.external_columns(owner, name)
            assert [(column.name, column.type) for column in columns.columns] == [("id", "int64"), ("name", "string"), ("x", "double")]
            external = ExternalTable("", "", 0, owner, name, "identity-of-external", columns)
            for form in store.capabilities.reads:
                assert rows(session, external, form) == table.to_pylist()
            assert ask(session, "SELECT e.id, e.name FROM pipedag__in.e WHERE x < 1", e=external) == [{"id": 1, "name": "Ä"}]
            chosen = view(external, selection=Selection((("n", "name"),), (("id", False, False),)))
            assert rows(session, chosen) == [{"n": "Ä"}, {"n": None}]

    def test_a_table_of_somebody_else_is_no_deposit_and_cannot_be_dropped(self, store: TableStore, make_external: MakeExternal) -> None:
        owner, name = make_external(pa.table({"id": [1]}))
        assert list(store.deposits()) == []
        with pytest.raises(StoreError):
            store.drop([f'"{owner}"."{name}"'])
        with store.session("f.t") as session:
            assert session.external_columns(owner, name).names == ("id",)

    def test_a_table_of_somebody_else_that_is_not_there_is_told(self, store: TableStore, make_external: MakeExternal) -> None:
        owner, name = make_external(pa.table({"id": [1]}))
        with store.session("f.t") as session:
            columns = session.external_columns(owner, name)
            for missing in (f"{name}_no", "../" + name, 'x"y', ""):
                with pytest.raises(StoreError):
                    session.external_columns(owner, missing)
            with pytest.raises((StoreError, ConfigError)):
                session.external_columns("nobody", name)
            gone = ExternalTable("", "", 0, owner, f"{name}_no", "identity", columns)
            with pytest.raises(StoreError) as caught:
                rows(session, gone)
            assert not isinstance(caught.value, StoredDataMissing)


def _sorted(found: list[dict[str, object]]) -> list[dict[str, object]]:
    return sorted(found, key=lambda row: str(row["x"]))
