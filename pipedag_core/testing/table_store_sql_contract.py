"""What every table store has to pass about SQL: queries as they are hashed, run and shown, and scripts."""

from __future__ import annotations

import pyarrow as pa
import pytest

from pipedag_core.errors import MaterializationError, QueryFailed
from pipedag_core.ports.data import BatchData, Form, QuerySource, StoredTable
from pipedag_core.ports.stores import StoreSession, TableStore
from pipedag_core.testing.table_store_samples import STAGES, ask, keep, prepare, rows, stored_as, target

_QUERY = """SELECT n.id, 'A' AS kind FROM "pipedag__in"."names" AS n WHERE n.name <> 'b' ORDER BY n.id"""


class TableStoreSqlContract:
    """Queries and scripts; part of `TableStoreContract`."""

    @pytest.fixture
    def session(self, store: TableStore) -> object:
        """Yield a session that is closed afterwards."""
        with store.session("flow.task") as session:
            yield session

    @pytest.fixture
    def names(self, session: StoreSession) -> StoredTable:
        """A stored table `raw.names`."""
        table = pa.table({"id": [1, 2, 3], "name": ["a", "b", "c"]})
        return keep(session, BatchData(lambda: table, in_memory=True), "names", identity="identity-of-names")

    # --- what is shown ----------------------------------------------------------------------------------------------------------

    def test_a_query_that_was_made_of_places_is_shown_with_names(
        self, store: TableStore, session: StoreSession, names: StoredTable
    ) -> None:
        if Form.QUERY not in store.capabilities.reads or store.capabilities.dialect != "duckdb":
            pytest.skip("no relations can be made of its places")
        source = session.read(names, Form.QUERY)
        assert isinstance(source, QuerySource)
        shown = session.readable(source.connection.sql(f"SELECT id + 1 AS next FROM {source.place}").sql_query())
        assert shown is not None
        assert f"{names.stage}.names" in shown.replace('"', "")
        assert source.place not in shown
        assert session.readable("SELECT 1 FROM somewhere.else") is None
        assert session.readable("SELEC nonsense") is None

    # --- what is hashed ---------------------------------------------------------------------------------------------------------

    @pytest.mark.parametrize(
        "same",
        [
            """  select n.id,\n\t'A' as kind\nfrom "pipedag__in"."names" as n where n.name<>'b'\norder by n.id ;  """,
            """SELECT n.id, /* a; comment 'with' "quotes" */ 'A' AS kind -- and another\n FROM pipedag__in.names AS n WHERE n.name <> 'b' ORDER BY n.id -- end""",
            """SELECT n.id, 'A' AS kind FROM raw.names AS n WHERE n.name <> 'b' ORDER BY n.id""",
        ],
    )
    def test_white_space_comments_and_the_case_of_keywords_do_not_count(self, session: StoreSession, names: StoredTable, same: str) -> None:
        assert prepare(session, same, names=names).canonical == prepare(session, _QUERY, names=names).canonical

    @pytest.mark.parametrize(
        ("old", "new"),
        [
            ("'A'", "'a'"),
            ("'A'", "'A '"),
            ("'b'", "'B'"),
            ("<>", "="),
            ("n.id,", "n.id + 0,"),
            ("n.name", 'n."NAME"'),
            ("'A'", "'--A'"),
            ("'A'", "1"),
            ("'A'", "1.0"),
        ],
    )
    def test_whatever_can_change_rows_counts(self, session: StoreSession, names: StoredTable, old: str, new: str) -> None:
        changed = prepare(session, _QUERY.replace(old, new), names=names)
        assert changed.canonical != prepare(session, _QUERY, names=names).canonical

    def test_an_input_counts_by_its_identity_and_neither_by_place_nor_by_label(self, session: StoreSession, names: StoredTable) -> None:
        table = pa.table({"id": [1], "name": ["a"]})
        same = keep(session, BatchData(lambda: table, in_memory=True), "other", generation=7, identity="identity-of-names")
        fresh = keep(session, BatchData(lambda: table, in_memory=True), "names", identity="another")
        expected = prepare(session, _QUERY, names=names).canonical
        assert prepare(session, _QUERY.replace('"names"', '"other"'), other=same).canonical == expected
        assert prepare(session, _QUERY, names=fresh).canonical != expected
        assert "identity-of-names" in expected
        assert names.location not in expected

    def test_two_inputs_cannot_change_places_unnoticed(self, session: StoreSession, names: StoredTable) -> None:
        twin = keep(session, BatchData(lambda: pa.table({"id": [1], "name": ["a"]}), in_memory=True), "twin", identity=names.identity)
        left = prepare(session, "SELECT a.id FROM pipedag__in.a LEFT JOIN pipedag__in.b ON a.id = b.id", a=names, b=twin)
        right = prepare(session, "SELECT a.id FROM pipedag__in.b LEFT JOIN pipedag__in.a ON a.id = b.id", a=names, b=twin)
        assert left.canonical != right.canonical

    # --- what is run and shown --------------------------------------------------------------------------------------------------

    @pytest.mark.parametrize(
        "sql",
        [
            'SELECT n.id FROM "pipedag__in"."names" AS n ORDER BY n.id',
            "SELECT id FROM pipedag__in.names ORDER BY id",
            "SELECT names.id FROM pipedag__in.names WHERE names.id > 0 ORDER BY 1",
            'SELECT "pipedag__in"."names".id FROM "pipedag__in"."names" ORDER BY "pipedag__in"."names".id',
            "SELECT x.id FROM pipedag__in.names x JOIN pipedag__in.names AS y ON x.id = y.id ORDER BY x.id",
            "WITH raw AS (SELECT id FROM pipedag__in.names) SELECT raw.id FROM raw ORDER BY raw.id",
            "SELECT names.id FROM raw.names ORDER BY 1",
            "SELECT raw.names.id FROM raw.names ORDER BY 1",
            "SELECT id FROM (SELECT id FROM pipedag__in.names) AS pipedag ORDER BY id; -- done",
        ],
    )
    def test_inputs_can_be_named_in_every_way_that_sql_has(self, session: StoreSession, names: StoredTable, sql: str) -> None:
        assert ask(session, sql, names=names) == [{"id": 1}, {"id": 2}, {"id": 3}]

    def test_a_reader_sees_readable_names(self, session: StoreSession, names: StoredTable) -> None:
        prepared = prepare(session, _QUERY, names=names)
        assert '"raw"."names"' in prepared.readable
        assert "pipedag__in" not in prepared.readable + prepared.text
        assert prepared.inputs == ("names",)

    def test_text_inside_strings_and_quotes_is_never_replaced(self, session: StoreSession, names: StoredTable) -> None:
        sql = """SELECT 'pipedag__in.names' AS a, id AS "pipedag__in.names" FROM pipedag__in.names WHERE id = 1"""
        assert ask(session, sql, names=names) == [{"a": "pipedag__in.names", "pipedag__in.names": 1}]

    def test_a_label_that_is_no_input_is_refused(self, session: StoreSession, names: StoredTable) -> None:
        with pytest.raises(MaterializationError, match="names"):
            prepare(session, "SELECT 1 FROM pipedag__in.nobody", names=names)

    @pytest.mark.parametrize("sql", ["SELECT * FROM features.other", 'SELECT * FROM pipedag__in.names JOIN "RAW"."Other" AS o ON TRUE'])
    def test_a_table_of_a_stage_that_is_no_input_is_refused_with_the_fix(self, session: StoreSession, names: StoredTable, sql: str) -> None:
        with pytest.raises(MaterializationError, match="argument"):
            prepare(session, sql, names=names)

    @pytest.mark.parametrize("sql", ["SELECT 'a", "SELECT /* a", "", " -- nothing"])
    def test_text_that_is_no_sql_is_refused(self, session: StoreSession, sql: str) -> None:
        with pytest.raises(MaterializationError):
            session.prepare(sql, {}, STAGES)

    # --- scripts ----------------------------------------------------------------------------------------------------------------

    def test_a_script_gives_what_it_created_and_nothing_else(self, session: StoreSession, names: StoredTable) -> None:
        script = """
            CREATE TABLE step AS SELECT id * 10 AS x, 'a;b' AS note FROM raw.names;   -- a comment; with a semicolon
            CREATE TABLE features.result AS SELECT SUM(x) AS total FROM step;
            CREATE VIEW shown AS SELECT note FROM features.step WHERE x = 10;
            CREATE TABLE scrap AS SELECT 1 AS a; DROP TABLE scrap;
        """
        found = session.run_script(prepare(session, script, names=names), [names], "features", target("script", stage="features"))
        assert set(found) == {"step", "result", "shown"}
        answers = {name: rows(session, stored_as(written, where)) for name, (where, written) in found.items()}
        assert answers["result"] == [{"total": 60}]
        assert answers["shown"] == [{"note": "a;b"}]
        assert {where.name for where, _ in found.values()} == set(found)
        assert {(where.stage, where.generation) for where, _ in found.values()} == {("features", 1)}

    def test_a_failing_statement_is_named_with_its_number_and_text_and_nothing_is_left(self, session: StoreSession) -> None:
        script = "CREATE TABLE fine AS SELECT 1 AS a; CREATE TABLE bad AS SELECT no_such FROM fine; CREATE TABLE never AS SELECT 1 AS a"
        with pytest.raises(QueryFailed, match=r"(?s)statement 2 of 3.*no_such"):
            session.run_script(prepare(session, script), [], "features", target("script", stage="features"))

    @pytest.mark.parametrize("script", ["CREATE SCHEMA elsewhere; CREATE TABLE elsewhere.x AS SELECT 1 AS a", "DROP VIEW raw.names"])
    def test_a_script_that_writes_outside_of_its_stage_is_refused(self, session: StoreSession, names: StoredTable, script: str) -> None:
        with pytest.raises(MaterializationError):
            session.run_script(prepare(session, script, names=names), [names], "features", target("script", stage="features"))
        assert len(rows(session, names)) == 3

    @pytest.mark.parametrize("script", ["INSERT INTO raw.names VALUES (4, 'd')", "DELETE FROM raw.names", "UPDATE raw.names SET id = 1"])
    def test_a_script_that_changes_its_input_is_refused(self, session: StoreSession, names: StoredTable, script: str) -> None:
        with pytest.raises(MaterializationError):
            session.run_script(prepare(session, script, names=names), [names], "features", target("script", stage="features"))
        assert len(rows(session, names)) == 3
