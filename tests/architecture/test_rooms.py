"""One library, one room."""

from __future__ import annotations

import pytest

from tests.architecture.house import ROOT, is_foreign, sources

#: Library -> where it may be imported: files, or folders (which end in a slash).
ROOMS = {
    "adbc_driver_postgresql": ["pipedag_core/stores/dialects/postgres"],
    "airflow": ["pipedag_airflow/"],
    "blake3": ["pipedag_core/stores/arrow_hash.py"],
    "dagster": ["pipedag_dagster/"],
    "dataframely": ["pipedag_core/hooks/polars_dataframely.py"],
    "dask": ["pipedag_core/engines/dask.py"],
    "duckdb": ["pipedag_core/stores/", "pipedag_core/hooks/duckdb", "pipedag_core/production/sql.py"],
    "fsspec": ["pipedag_core/stores/"],
    "ibis": ["pipedag_core/hooks/ibis"],
    "numpy": ["pipedag_core/production/blobs.py"],
    "onnx": ["pipedag_core/production/blobs.py"],
    "skops": ["pipedag_core/production/blobs.py"],
    "kubernetes": ["pipedag_airflow/"],
    "mlflow": ["pipedag_mlflow/"],
    "msgpack": ["pipedag_core/hooks/polars_trace.py"],
    "pandera": ["pipedag_core/hooks/pandera.py"],
    # MLflow hands frames of pandas to models.
    "pandas": ["pipedag_core/hooks/pandas.py", "pipedag_mlflow/asking.py", "pipedag_mlflow/model.py", "pipedag_mlflow/signature.py"],
    "polars": ["pipedag_core/hooks/polars"],
    "prefect": ["pipedag_core/engines/prefect.py"],
    "pydiverse": ["pipedag_core/hooks/polars_colspec.py"],
    # Dagster's resources and components are models of it.
    "pydantic": ["pipedag_dagster/component.py", "pipedag_dagster/resource.py", "pipedag_dagster/scoring_component.py"],
    # Result and `show` hand out rows of stored tables, in no type of the user's.
    "pyarrow": [
        "pipedag_core/stores/",
        "pipedag_core/hooks/",
        "pipedag_core/arrow_schema.py",
        "pipedag_core/run/result.py",
        "pipedag_core/production/",
        "pipedag_core/testing/",
        # Tables of an evaluation come to MLflow in this form, and what a model is asked is made of it.
        "pipedag_mlflow/documents.py",
        "pipedag_mlflow/asked.py",
        "pipedag_mlflow/fixed.py",
        "pipedag_mlflow/model.py",
        "pipedag_mlflow/signature.py",
    ],
    # Made only for those who ask for an object of this library.
    "pydot": ["pipedag_core/plan/draw.py"],
    "psycopg": ["pipedag_core/databases/postgres.py", "pipedag_core/catalogs/postgres.py", "pipedag_core/stores/dialects/postgres"],
    "rich": ["pipedag_core/cli/"],
    "sqlalchemy": ["pipedag_core/stores/", "pipedag_core/catalogs/", "pipedag_core/hooks/sqlalchemy"],
    "sqlglot": ["pipedag_core/stores/", "pipedag_core/production/sql.py"],
    "typer": ["pipedag_core/cli/", "pipedag_airflow/cli.py", "pipedag_dagster/cli.py", "pipedag_mlflow/cli.py"],
    "yaml": ["pipedag_core/config/load.py"],
    # For those who test a store, a hook or an engine of their own.
    "pytest": ["pipedag_core/testing/"],
}


@pytest.mark.parametrize("source", sources(), ids=lambda source: source.path)
def test_a_library_is_imported_in_its_own_room_only(source):
    strangers = {name.partition(".")[0] for name in source.imports() if is_foreign(name)}
    misplaced = {library for library in strangers if not any(source.path.startswith(place) for place in ROOMS.get(library, []))}
    assert not misplaced, f"{source.path} imports {sorted(misplaced)}; the table in {__file__} says where that may be"


def test_the_house_is_there():
    assert (ROOT / "pipedag_core").is_dir()
    assert len(sources()) > 40
