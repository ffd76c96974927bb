"""What a production flow adds to calling the same functions by hand: chains of small tasks, queries, the flights pipeline, and loading its bundle."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import duckdb
import environments
import pandas as pd
import polars as pl
import pyarrow as pa
import sqlalchemy as sa
from chains import NODES, first, in_pandas, in_polars
from timing import Row, Stopwatch, Timing, Unavailable, in_turns, row

from pipedag_core import Flow, InOutSpecification, PipedagConfig, ProductionFlow, Stage, materialize

HERE = Path(__file__).resolve().parent
DAGS = HERE.parent / "dags"

TASK_LIMIT_US, SQL_LIMIT_US, HAMILTON_LIMIT_TIMES = 12, 150, 0.5
ONE_LIMIT_TIMES, MANY_LIMIT_TIMES, LOAD_LIMIT_TIMES = 1.5, 1.05, 1.3

#: SQL tasks in a chain, and flights scored at once.
QUERIES, FLIGHTS = 20, 100_000

QUERY = "SELECT id, value + 1 AS value FROM {}"


@materialize(version="1.0")
def start() -> pa.Table:
    """One row, as training had it."""
    return pa.table({"id": [1], "value": [1]})


polars_step = materialize(version="1.0", input_type=pl.DataFrame)(in_polars)
pandas_step = materialize(version="1.0", input_type=pd.DataFrame)(in_pandas)


@materialize(lazy=True, input_type=sa.Table)
def query_step(frame: sa.Alias) -> Any:
    """A query as small as can be."""
    return sa.select(frame.c.id, (frame.c.value + 1).label("value"))


def extracted(step: Callable[[Any], Any], tasks: int, folder: Path) -> ProductionFlow:
    """Train a chain of tasks, and return its production flow."""
    store = {"class": "parquet", "args": {"base_path": f"{folder}/{{instance_id}}"}}
    config = PipedagConfig({"name": "bench", "instances": {"bench": {"instance_id": "bench", "table_store": store}}}).get("bench")
    with Flow("chain") as flow:
        with Stage("first"):
            table = given = start()
        with Stage("then"):
            for _ in range(tasks):
                table = step(table)
    flow.run(config=config, fail_fast=True)
    return flow.extract(InOutSpecification(input={"start": given}, output=table), config=config)


def by_flow(prod: ProductionFlow, inputs: Mapping[str, Any]) -> Callable[[Stopwatch], None]:
    """Return a run of a production flow."""

    def run(watch: Stopwatch) -> None:
        with watch:
            prod.run(inputs)

    return run


def overhead_row(what: str, flow: Timing, hand: Timing, per: int, limit: float | None, **options: Any) -> Row:
    """Return the row for what a flow adds per task, in microseconds."""
    scale = 1e6 / per
    return Row(
        what,
        flow.median * scale,
        "us",
        raw=hand.median * scale,
        compared="above",
        limit=limit,
        samples=tuple(second * scale for second in flow.seconds),
        raw_samples=tuple(second * scale for second in hand.seconds),
        **options,
    )


# --- chains -----------------------------------------------------------------------------------------------------------------------------


def chained(library: str, folder: Path, repeats: int) -> tuple[Row, ProductionFlow]:
    """Take a chain of frames through a production flow and by hand."""
    step, task = {"polars": (in_polars, polars_step), "pandas": (in_pandas, pandas_step)}[library]
    frame = first(library)
    prod = extracted(task, NODES, folder)
    is_pandas = library == "pandas"

    def by_hand(watch: Stopwatch) -> None:
        with watch:
            now = frame
            for _ in range(NODES):
                # One shallow copy per frame is allowed: a task may change what it gets.
                now = step(now.copy(deep=False) if is_pandas else now)

    timings = in_turns({"flow": by_flow(prod, {"start": frame}), "hand": by_hand}, repeats, warmups=3)
    hand_what = "the same by hand" + (", each frame copied shallowly" if is_pandas else "")
    what = f"production: task in {library}, one row"
    return overhead_row(what, timings["flow"], timings["hand"], NODES, TASK_LIMIT_US, raw_what=hand_what), prod


def beside_hamilton(rows: Mapping[str, ProductionFlow], repeats: int, rounds: int) -> list[Row]:
    """Compare what a production flow adds per task with what Apache Hamilton's driver adds, both above the bare calls."""
    python = environments.environment(HERE / ".hamilton", HERE / "hamilton-constraints.txt", lambda: sys.executable, "Apache Hamilton")
    found: list[Row] = []
    with subprocess.Popen(
        (str(python), str(HERE / "hamilton_worker.py")), stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as worker:
        assert worker.stdin is not None
        assert worker.stdout is not None
        for library, prod in rows.items():
            ours: list[float] = []
            theirs: list[float] = []
            frame = first(library)
            step = in_polars if library == "polars" else in_pandas

            def by_hand(watch: Stopwatch, step: Any = step, frame: Any = frame) -> None:
                with watch:
                    now = frame
                    for _ in range(NODES):
                        now = step(now)

            for _ in range(rounds):
                timings = in_turns({"flow": by_flow(prod, {"start": frame}), "hand": by_hand}, repeats)
                ours.append((timings["flow"].median - timings["hand"].median) / NODES * 1e6)
                worker.stdin.write(f"{library} {repeats}\n")
                worker.stdin.flush()
                line = worker.stdout.readline()
                if not line:
                    raise Unavailable("Apache Hamilton's process has ended; its message stands above.")
                told = json.loads(line)
                theirs.append((median(told["driver"]) - median(told["hand"])) / NODES * 1e6)
            found.append(
                Row(
                    f"production: what it adds per task in {library}",
                    median(ours),
                    "us",
                    "what Apache Hamilton adds",
                    median(theirs),
                    "times",
                    HAMILTON_LIMIT_TIMES,
                    samples=tuple(ours),
                    raw_samples=tuple(theirs),
                )
            )
        worker.stdin.close()
    return found


@dataclass
class Exchanged:
    """Rows that a view reads, and that can be exchanged."""

    rows: Any

    def __arrow_c_stream__(self, requested_schema: Any = None) -> Any:
        return self.rows.__arrow_c_stream__(requested_schema)


def queried(folder: Path, repeats: int) -> list[Row]:
    """Take a chain of queries through a production flow and by hand."""
    prod = extracted(query_step, QUERIES, folder)
    frame = pa.table({"id": [1], "value": [1]})
    connection = duckdb.connect()
    rows = [Exchanged(frame) for _ in range(QUERIES)]
    kept: list[Any] = []
    for number in range(QUERIES):
        connection.register(f"t{number}", frame)
        connection.execute(f"PREPARE q{number} AS {QUERY.format(f't{number}')}")
        connection.register(f"e{number}", rows[number])
        kept.append(connection.sql(QUERY.format(f"e{number}")))

    def by_hand(watch: Stopwatch) -> None:
        with watch:
            now = frame
            for number in range(QUERIES):
                connection.register(f"t{number}", now)
                now = connection.execute(f"EXECUTE q{number}").to_arrow_table()

    def as_kept(watch: Stopwatch) -> None:
        with watch:
            now = frame
            for number in range(QUERIES):
                rows[number].rows = now
                now = kept[number].to_arrow_table()

    with warnings.catch_warnings():
        # DuckDB says that the rows are copied once more; there is one.
        warnings.simplefilter("ignore", UserWarning)
        timings = in_turns({"flow": by_flow(prod, {"start": frame}), "hand": by_hand, "kept": as_kept}, repeats, warmups=3)
    connection.close()
    what = "production: SQL task, one row"
    flow = timings["flow"]
    return [
        overhead_row(
            what, flow, timings["hand"], QUERIES, SQL_LIMIT_US, raw_what="registering the same rows, executing the same prepared query"
        ),
        overhead_row(
            f"{what}, again", flow, timings["kept"], QUERIES, None, raw_what="the same query kept as a relation, its rows exchanged"
        ),
    ]


# --- flights ----------------------------------------------------------------------------------------------------------------------------


@dataclass
class Trained:
    """The flights pipeline after training: its production flow, a bundle of it, what was frozen, and tables with many flights."""

    prod: ProductionFlow
    bundle: Path
    model: Any
    encoding: Mapping[str, Any]
    late_rate: float
    calibration: Mapping[str, pa.Table]
    clean: Mapping[str, pl.DataFrame]


def train(folder: Path, instance: str) -> Trained:
    """Train on an instance, and clean the flights of the largest one."""
    sys.path.insert(0, str(DAGS))
    import yaml
    from pipelines import flights

    settings = PipedagConfig(yaml.safe_load((DAGS / "pipedag.yaml").read_text(encoding="utf-8")), base_dir=folder)
    config, full = settings.get(instance), settings.get("full")
    flow, spec = flights.get_pipeline(config.attrs)
    result = flow.run(config=config, fail_fast=True)
    prod = flow.extract(spec, config=config)
    training, features = flow["05_model_training"], flow["04_features"]
    whole = flights.get_pipeline(full.attrs)[0]
    cleaned = whole.run("01_raw_input", "02_early_cleaning", config=full, fail_fast=True)
    return Trained(
        prod,
        prod.save(folder / "bundle"),
        result.get(training.get_task("model_train")[0]),
        result.get(training.get_task("model_encoding")[2]),
        result.get(features.get_task("calibrate_late_rate")),
        result.get(features.get_task("calibrate_tables"), as_type=pa.Table),
        cleaned.get(whole["02_early_cleaning"].get_task("clean"), as_type=pl.DataFrame),
    )


class ByHand:
    """The same functions, called as somebody would who writes the service by hand: consts are loaded, the query is made once."""

    def __init__(self, trained: Trained) -> None:
        from duckdb_sqlalchemy import Dialect
        from pipelines import flights_data, flights_features, flights_model

        self._data, self._features, self._model = flights_data, flights_features, flights_model
        self._trained = trained
        self._connection = duckdb.connect()
        names = {name: f"calibration_{name}" for name in trained.calibration}
        for name, table in trained.calibration.items():
            self._connection.register(names[name], table)
        types = {pa.int64(): sa.BigInteger, pa.float64(): sa.Double, pa.bool_(): sa.Boolean, pa.int32(): sa.Integer}

        def alias(name: str, schema: pa.Schema) -> sa.Alias:
            columns = [sa.Column(item.name, types.get(item.type, sa.String)) for item in schema]
            return sa.Table(name, sa.MetaData(), *columns).alias()

        flights = self._represented({**trained.clean, "flights": trained.clean["flights"].head(1)})["flights"].to_arrow()
        tables = {name: alias(names[name], table.schema) for name, table in trained.calibration.items()}
        history = self._features.apply_calibration({"flights": alias("flights", flights.schema)}, tables, {"late_rate": trained.late_rate})[
            "history"
        ].obj
        self._query = str(history.compile(dialect=Dialect(), compile_kwargs={"literal_binds": True}))

    def _represented(self, clean: Mapping[str, pl.DataFrame]) -> dict[str, pl.DataFrame]:
        made = self._data.economic_representation({name: frame.lazy() for name, frame in clean.items()})
        return dict(zip(made, pl.collect_all([table.obj for table in made.values()]), strict=True))

    def __call__(self, clean: Mapping[str, pl.DataFrame]) -> pd.DataFrame:
        """Score flights."""
        trained = self._trained
        tables = self._represented(clean)
        made = self._features.features({name: frame.lazy() for name, frame in tables.items()})
        features = dict(zip(made, pl.collect_all([table.obj for table in made.values()]), strict=True))
        self._connection.register("flights", tables["flights"].to_arrow())
        history = self._connection.sql(self._query).to_arrow_table()
        frames = {name: frame.to_pandas() for name, frame in features.items()} | {"history": history.to_pandas()}
        inputs, _, _ = self._model.model_encoding(frames, encoding_parameters=trained.encoding)
        return self._model.model_predict(trained.model, inputs.obj).obj

    def close(self) -> None:
        """Close the database."""
        self._connection.close()


def scored(trained: Trained, count: int, repeats: int, limit: float) -> Row:
    """Score some flights through the production flow and by hand."""
    clean = {**trained.clean, "flights": trained.clean["flights"].head(count)}
    hand = ByHand(trained)
    by_order = {"by": "flight_id", "ignore_index": True}
    same = (
        trained.prod.run({"clean": clean}).sort_values(**by_order)["probability"].equals(hand(clean).sort_values(**by_order)["probability"])
    )

    def by_hand(watch: Stopwatch) -> None:
        with watch:
            hand(clean)

    timings = in_turns({"flow": by_flow(trained.prod, {"clean": clean}), "hand": by_hand}, repeats, warmups=2)
    hand.close()
    what = "one flight" if count == 1 else f"{count:,} flights"
    return row(
        f"production: flights, {what} scored",
        timings["flow"],
        raw=timings["hand"],
        raw_what="the same functions by hand",
        compared="times",
        limit=limit,
        holds=same,
        note="" if same else "the answers differ",
    )


def loaded(trained: Trained, repeats: int) -> Row:
    """Load the bundle, beside reading its files with the libraries that they are for."""
    import pyarrow.parquet as pq
    import skops.io

    def by_flow_(watch: Stopwatch) -> None:
        with watch:
            ProductionFlow.load(trained.bundle)

    def by_hand(watch: Stopwatch) -> None:
        with watch:
            for file in trained.bundle.rglob("*"):
                if file.suffix == ".json":
                    json.loads(file.read_bytes())
                elif file.suffix == ".parquet":
                    pq.read_table(file)
                elif file.suffix == ".skops":
                    raw = file.read_bytes()
                    skops.io.loads(raw, trusted=skops.io.get_untrusted_types(data=raw))

    timings = in_turns({"flow": by_flow_, "hand": by_hand}, repeats)
    return row(
        "production: load of the flights bundle",
        timings["flow"],
        raw=timings["hand"],
        raw_what="reading its files",
        compared="times",
        limit=LOAD_LIMIT_TIMES,
    )


def measure(quick: bool) -> list[Row]:
    """Return the rows of all figures."""
    repeats = 20 if quick else 200
    rows: list[Row] = []
    flows: dict[str, ProductionFlow] = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for library in ("polars", "pandas"):
            found, prod = chained(library, folder / library, repeats)
            rows.append(found)
            flows[library] = prod
        try:
            rows += beside_hamilton(flows, 10 if quick else 30, 3 if quick else 7)
        except Unavailable as error:
            print(f"Without Apache Hamilton: {error}")
        rows += queried(folder / "sql", repeats)
        trained = train(folder, "mini")
        rows.append(scored(trained, 1, 10 if quick else 40, ONE_LIMIT_TIMES))
        rows.append(scored(trained, FLIGHTS // (10 if quick else 1), 3 if quick else 9, MANY_LIMIT_TIMES))
        rows.append(loaded(trained, 5 if quick else 15))
    return rows
