"""Names become opened parts in one place."""

from __future__ import annotations

import sys
import types

import pytest

from pipedag_core.config.context import PipedagConfig, create_basic_pipedag_config
from pipedag_core.config.settings import Attrs, PartSettings, Secret
from pipedag_core.config.wire import catalog_path, open_engine, open_session
from pipedag_core.engines.sequential import SequentialEngine
from pipedag_core.engines.threads import ThreadEngine
from pipedag_core.errors import ConfigError
from pipedag_core.ports.events import RunStarted


class Remembering:
    """An observer as a user writes it."""

    def __init__(self, name, **options):
        self.name, self.options, self.seen = name, options, []

    def on_event(self, event):
        self.seen.append(event)


@pytest.fixture
def outside(monkeypatch):
    """A module of the user's own."""
    module = types.ModuleType("probe_outside")
    module.Remembering = Remembering
    monkeypatch.setitem(sys.modules, "probe_outside", module)


def config(**section):
    return PipedagConfig({"instances": {"__any__": section}}).get()


def test_the_default_session_keeps_everything_in_one_folder(tmp_path):
    with open_session(config()) as session:
        assert session.catalog.runs() == []
        assert session.tables.capabilities.dialect == "duckdb"
        assert session.retention.committed == 2
    assert (tmp_path / ".pipedag" / "default" / "catalog.sqlite").is_file()


def test_relative_paths_start_from_the_folder_of_the_file(tmp_path, monkeypatch):
    (tmp_path / "project").mkdir()
    (tmp_path / "project" / "pipedag.yaml").write_text("name: x")
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    settings = PipedagConfig(tmp_path / "project" / "pipedag.yaml").get()
    assert catalog_path(settings) == tmp_path / "project" / ".pipedag" / "default" / "catalog.sqlite"


def test_the_catalog_can_be_elsewhere_on_a_local_disk(tmp_path):
    settings = config(metadata_store={"url": f"sqlite:///{tmp_path}/catalogs/{{instance_id}}.sqlite"})
    with open_session(settings):
        assert (tmp_path / "catalogs" / "default.sqlite").is_file()


def test_settings_of_the_instance_reach_the_session():
    with open_session(config(auto_blob=["my.Model"], content_hash_rows=7, lease_ttl="5s", retention={"committed": 4})) as session:
        assert (session.auto_blob, session.content_hash_rows, session.ttl_s, session.retention.committed) == (("my.Model",), 7, 5.0, 4)


def test_engines_are_made_from_their_names_and_options():
    assert isinstance(open_engine(config()), ThreadEngine)
    assert isinstance(open_engine(config(orchestration={"class": "sequential"})), SequentialEngine)
    assert open_engine(config(orchestration={"class": "threads", "args": {"max_workers": 3}})).max_workers == 3
    assert open_engine(config(orchestration={"class": "threads", "args": {"max_workers": 3}}), max_workers=2).max_workers == 2


def test_an_option_that_the_engine_does_not_have_is_refused():
    with pytest.raises(ConfigError, match=r"max_wrkers is not a known key. Did you mean 'max_workers'"):
        open_engine(config(), max_wrkers=2)


@pytest.mark.parametrize(
    ("section", "message"),
    [
        (
            {
                "table_store": {"class": "sql", "args": {"url": "mysql://u:hush@host/{instance_id}"}},
                "metadata_store": {"url": "sqlite:///{instance_id}.sqlite"},
            },
            r"no dialect for 'mysql' databases. It has: postgresql",
        ),
        ({"table_store": {"args": {"base_path": "s3://bucket/{instance_id}"}}}, r"object storage is not supported yet"),
        (
            {"metadata_store": {"url": "mysql://u:hush@host/{instance_id}"}},
            r"catalogs other than SQLite files and PostgreSQL are not supported yet",
        ),
        ({"blob_store": {"class": "probe_nowhere.Store"}}, r"there is no module 'probe_nowhere'"),
        ({"blob_store": {"class": "pydiverse.pipedag.backend.blob.FileBlobStore"}}, r"Its counterpart here is called 'file'"),
        ({"blob_store": {"class": "json.Store"}}, r"module 'json' has no 'Store'"),
        ({"blob_store": {"class": "json.JSONDecoder", "args": {"wrong": 1}}}, r"does not take the arguments \['wrong'\]"),
    ],
)
def test_what_cannot_be_opened_is_told(section, message):
    with pytest.raises(ConfigError, match=message) as caught, open_session(config(**section)):
        pass
    assert "hush" not in str(caught.value)


@pytest.mark.parametrize("name", ["dask", "prefect"])
def test_engines_of_later_versions_are_refused_by_name(name):
    with pytest.raises(
        ConfigError, match=rf"orchestration.class '{name}' is not supported yet by this version. It has: sequential, threads"
    ):
        open_engine(config(orchestration={"class": name}))


def test_observers_of_the_configuration_are_told_after_those_of_the_caller(outside):
    settings = config(observers=[{"class": "probe_outside.Remembering", "args": {"name": "configured", "token": "hush"}}])
    assert "hush" not in repr(settings)
    with open_session(settings, [Remembering("given")]) as session:
        session.tell(RunStarted("r", "f", "i", ()))
        assert [observer.name for observer in session.observers] == ["given", "configured"]
        assert session.observers[1].options == {"token": "hush"}
        assert all(len(observer.seen) == 1 for observer in session.observers)


def test_secrets_are_revealed_to_the_part_that_needs_them_and_to_nobody_else(outside):
    settings = (
        create_basic_pipedag_config()
        .get()
        .evolve(observers=(PartSettings("probe_outside:Remembering", Attrs({"name": Secret("hush"), "deep": [{"x": Secret("hush")}]})),))
    )
    with open_session(settings) as session:
        assert session.observers[0].name == "hush"
        assert session.observers[0].options == {"deep": [{"x": "hush"}]}
        assert "hush" not in repr(session.config)
