"""Sections merge in a fixed order, and every instance has its own place."""

from __future__ import annotations

import pickle
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipedag_core.cache.modes import CacheValidationMode
from pipedag_core.config.context import ConfigContext, PipedagConfig, create_basic_pipedag_config
from pipedag_core.config.merge import merge
from pipedag_core.define.context import TaskContext, executing
from pipedag_core.errors import ConfigError

SECTIONS = [
    ("technical_setups", "default"),
    ("instances", "__any__"),
    ("instances", "full"),
    ("flows", "__any__"),
    ("flows", "__any__", "instances", "full"),
    ("flows", "churn"),
    ("flows", "churn", "instances", "full"),
]


def with_attr_in(sections):
    raw = {"instances": {"full": {}}}
    for path in sections:
        here = raw
        for key in path:
            here = here.setdefault(key, {})
        here["attrs"] = {"from": ".".join(path)}
    return PipedagConfig(raw)


@given(st.sets(st.sampled_from(SECTIONS), min_size=1))
def test_the_latest_section_that_says_something_wins(chosen):
    strongest = max(chosen, key=SECTIONS.index)
    assert with_attr_in(chosen).get("full", flow="churn").attrs["from"] == ".".join(strongest)


def test_without_a_configuration_everything_is_kept_below_the_working_directory(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    config = PipedagConfig({}).get()
    assert (config.instance_name, config.instance_id, config.flow_name) == ("default", "default", None)
    assert config.table_store.kind == "parquet"
    assert config.table_store.args == {"base_path": ".pipedag/default"}
    assert config.blob_store.args == {"base_path": ".pipedag/default/blobs"}
    assert config.orchestration.kind == "threads"
    assert config.base_dir == tmp_path


def test_without_a_configuration_the_only_instance_is_the_default_one():
    with pytest.raises(ConfigError, match=r"no pipedag\.yaml here or above, so the only instance is 'default'"):
        PipedagConfig({}).get("mini")
    assert PipedagConfig({}).get("default") == PipedagConfig({}).get()


def test_leaving_the_instance_out_is_refused_where_others_than_the_default_one_are_named():
    with pytest.raises(ConfigError, match=r"Say which instance: .* has full, mini, and none that is called 'default'"):
        PipedagConfig({"instances": {"__any__": {}, "full": {}, "mini": {}}}).get()
    assert PipedagConfig({"instances": {"__any__": {}}}).get().instance_id == "default"
    assert PipedagConfig({"instances": {"default": {"instance_id": "own"}, "full": {}}}).get().instance_id == "own"
    assert PipedagConfig({"strict_instance_lookup": False, "instances": {"full": {}}}).get().instance_id == "default"


def test_the_instance_id_is_the_name_of_the_instance_unless_it_is_given():
    config = PipedagConfig({"instances": {"__any__": {}, "mini": {"instance_id": "mini_2"}, "full": {}}})
    assert config.get("full").instance_id == "full"
    assert config.get("mini").instance_id == "mini_2"
    assert config.get("mini").table_store.args.base_path == ".pipedag/mini_2"


def test_an_instance_that_is_named_nowhere_is_refused_with_the_nearest_name():
    with pytest.raises(ConfigError, match=r"'ful' is named nowhere.*Did you mean 'full'\?"):
        PipedagConfig({"instances": {"full": {}}}).get("ful")


def test_a_lenient_configuration_takes_any_instance():
    assert PipedagConfig({"strict_instance_lookup": False, "instances": {"full": {}}}).get("other").instance_id == "other"


def test_an_instance_may_stand_under_a_flow_only():
    config = PipedagConfig({"flows": {"churn": {"instances": {"small": {"attrs": {"n": 10}}}}}})
    assert config.instances == ["small"]
    assert config.get("small", "churn").attrs.n == 10
    assert config.get("small", "other").attrs == {}


def test_names_that_yaml_reads_as_numbers_are_found(tmp_path):
    file = tmp_path / "pipedag.yaml"
    file.write_text("instances: {2024: {attrs: {a: 1}}}")
    assert PipedagConfig(file).get("2024").attrs.a == 1


def test_keys_beside_a_technical_setup_beat_it():
    config = PipedagConfig(
        {"technical_setups": {"db": {"fail_fast": True}}, "instances": {"full": {"technical_setup": "db", "fail_fast": False}}}
    )
    assert config.get("full").fail_fast is False


def test_keys_beside_a_connection_beat_it():
    config = PipedagConfig(
        {
            "table_store_connections": {"disk": {"args": {"base_path": "/data/{instance_id}", "threads": 2}}},
            "instances": {"full": {"table_store": {"table_store_connection": "disk", "args": {"threads": 7}}}},
        }
    )
    assert config.get("full").table_store.args == {"base_path": "/data/full", "threads": 7}


@pytest.mark.parametrize(
    ("section", "message"),
    [
        ({"technical_setup": "databse"}, r"instances.full.technical_setup names 'databse'.*Did you mean 'database'"),
        ({"table_store": {"table_store_connection": "dsk"}}, r"table_store_connection names 'dsk'.*Did you mean 'disk'"),
    ],
)
def test_a_reference_to_a_section_that_is_not_there_is_refused(section, message):
    config = PipedagConfig({"technical_setups": {"database": {}}, "table_store_connections": {"disk": {}}, "instances": {"full": section}})
    with pytest.raises(ConfigError, match=message):
        config.get("full")


def test_arguments_of_one_class_are_never_given_to_another():
    config = PipedagConfig(
        {
            "instances": {
                "__any__": {"table_store": {"class": "parquet", "args": {"base_path": "/data/{instance_id}"}}},
                "db": {"table_store": {"class": "sql", "args": {"url": "duckdb:////data/{instance_id}.duckdb"}}},
            }
        }
    )
    assert config.get("db").table_store.args == {"url": "duckdb:////data/db.duckdb"}


TWO_LEVELS = st.dictionaries(st.sampled_from("abc"), st.dictionaries(st.sampled_from("abc"), st.integers()))


@given(TWO_LEVELS, TWO_LEVELS, TWO_LEVELS)
def test_merging_sections_two_by_two_gives_the_same_in_any_grouping(a, b, c):
    assert merge(a, {}) == merge({}, a) == a
    assert merge(merge(a, b), c) == merge(a, merge(b, c))


def test_none_takes_back_what_a_lower_section_says_but_is_a_value_in_attrs():
    config = PipedagConfig(
        {"instances": {"__any__": {"fail_fast": True, "attrs": {"n": 1}}, "full": {"fail_fast": None, "attrs": {"n": None}}}}
    )
    assert config.get("full").fail_fast is False
    assert config.get("full").attrs["n"] is None


@pytest.mark.parametrize(
    ("store", "path"),
    [
        ({"table_store": {"args": {"base_path": "/data/tables"}}}, "table_store.args"),
        ({"blob_store": {"args": {"base_path": "/data/blobs"}}}, "blob_store.args"),
        ({"table_store": {"class": "sql", "args": {"url": "postgresql://host/db"}}}, "table_store.args"),
        ({"metadata_store": {"url": "sqlite:////data/catalog.sqlite"}}, "metadata_store"),
    ],
)
def test_an_address_that_is_the_same_for_all_instances_is_refused(store, path):
    with pytest.raises(ConfigError, match=rf"{path}.*would overwrite each other.*Put {{instance_id}} into {path}"):
        PipedagConfig({"instances": {"full": store}}).get("full")


@pytest.mark.parametrize("address", ["/data/{instance_id}", "/data/full", "/data/full/", "{instance_id}/tables"])
def test_an_address_that_names_the_instance_is_taken(address):
    config = PipedagConfig({"instances": {"full": {"table_store": {"args": {"base_path": address}}}}})
    assert "full" in config.get("full").table_store.args.base_path


@pytest.mark.parametrize("bad", ["", "a/b", "..", "a b", "-", "x;drop"])
def test_an_instance_id_that_could_leave_its_place_is_refused(bad):
    with pytest.raises(ConfigError, match="becomes part of paths"):
        PipedagConfig({"instances": {"full": {"instance_id": bad}}}).get("full")


def test_per_user_changes_every_use_of_the_instance_id(monkeypatch):
    monkeypatch.setenv("LOGNAME", "ada")
    config = PipedagConfig({"instances": {"full": {"instance_id": "pipe"}}})
    assert config.get("full", per_user=True).instance_id == "pipe_ada"
    assert config.get("full", per_user=True).table_store.args.base_path == ".pipedag/pipe_ada"
    template = PipedagConfig({"instances": {"full": {"per_user_template": "{username}.{id}"}}})
    assert template.get("full", per_user=True).instance_id == "ada.full"


def test_every_setting_reaches_the_context():
    config = PipedagConfig(
        {
            "name": "churn",
            "instances": {
                "full": {
                    "fail_fast": True,
                    "auto_table": ["pandas.DataFrame", "my.Frame"],
                    "auto_blob": "my.Model",
                    "cache_validation": {"mode": "force_caches_invalid", "ignore_task_version": True},
                    "orchestration": {"class": "sequential"},
                    "retention": {"committed": 3, "failed": 0, "minimum_age": "30m"},
                    "content_hash_rows": 5,
                    "lease_ttl": "2m",
                    "lease_wait": "90s",
                    "hook_args": {"pandas": {"dtype_backend": "pyarrow"}},
                    "table_hooks": {"my.Frame": "my.hooks:FrameHook"},
                    "tags": ["a"],
                    "stage_tags": {"big": ["features"]},
                }
            },
        }
    ).get("full")
    assert config.name == "churn"
    assert config.fail_fast
    assert (config.auto_table, config.auto_blob) == (("pandas.DataFrame", "my.Frame"), ("my.Model",))
    assert config.cache_validation.mode is CacheValidationMode.FORCE_CACHE_INVALID
    assert config.cache_validation.ignore_task_version
    assert config.orchestration.kind == "sequential"
    assert (config.retention.committed, config.retention.failed, config.retention.minimum_age_s) == (3, 0, 1800.0)
    assert (config.content_hash_rows, config.lease_ttl, config.lease_wait) == (5, 120.0, 90.0)
    assert config.hook_args.pandas.dtype_backend == "pyarrow"
    assert config.table_hooks == {"my.Frame": "my.hooks:FrameHook"}
    assert (config.tags, config.stage_tags) == (["a"], {"big": ("features",)})


def test_a_context_survives_pickling():
    config = PipedagConfig({"instances": {"full": {"attrs": {"a": {"b": [1, 2]}}}}}).get("full")
    assert pickle.loads(pickle.dumps(config)) == config


def test_evolve_changes_settings_and_refuses_others():
    config = PipedagConfig({}).get()
    assert config.evolve(fail_fast=True, attrs={"n": 1}).attrs.n == 1
    with pytest.raises(ConfigError, match=r"no setting 'fail_fst'. Did you mean 'fail_fast'"):
        config.evolve(fail_fst=True)


def test_a_task_gets_the_configuration_that_it_runs_under():
    config = PipedagConfig({}).get()
    token = executing.set(TaskContext("f", "s", "t", "r", config, lambda *_: None))
    try:
        assert ConfigContext.get() is config
    finally:
        executing.reset(token)
    with pytest.raises(ConfigError, match="no task runs here"):
        ConfigContext.get()


def test_a_basic_configuration_has_one_instance(tmp_path):
    config = create_basic_pipedag_config(tmp_path, instance_id="probe", attrs={"n": 1}, orchestration_engine="sequential")
    assert config.get() == config.get("default").evolve(instance_name="default")
    assert config.get().table_store.args.base_path == f"{tmp_path}/probe"
    assert config.get().attrs.n == 1
    with pytest.raises(ConfigError, match="named nowhere"):
        config.get("other")


def test_a_basic_configuration_of_a_database_keeps_instances_apart_by_schema():
    config = create_basic_pipedag_config("postgresql://host/db", disable_stage_locking=True).get()
    assert config.table_store.args == {"url": "postgresql://host/db", "schema_prefix": "default_"}
    file = create_basic_pipedag_config("duckdb:////data/probe.duckdb", instance_id="probe").get()
    assert file.table_store.args == {"url": "duckdb:////data/probe.duckdb"}


def test_the_default_follows_the_working_directory_and_the_environment(tmp_path, monkeypatch):
    monkeypatch.delenv("PIPEDAG_CONFIG", raising=False)
    (tmp_path / "a" / "b").mkdir(parents=True)
    (tmp_path / "pipedag.yaml").write_text("name: outer")
    (tmp_path / "other.yaml").write_text("name: named")
    monkeypatch.chdir(tmp_path / "a" / "b")
    assert (PipedagConfig.default.name, PipedagConfig.default.path) == ("outer", tmp_path / "pipedag.yaml")
    assert PipedagConfig.default.get().base_dir == tmp_path
    (tmp_path / "a" / "pipedag.yml").write_text("name: inner")
    assert PipedagConfig.default.name == "inner"
    monkeypatch.setenv("PIPEDAG_CONFIG", str(tmp_path / "other.yaml"))
    assert PipedagConfig.default.name == "named"
    monkeypatch.setenv("PIPEDAG_CONFIG", str(Path("nowhere.yaml")))
    with pytest.raises(ConfigError, match=r"PIPEDAG_CONFIG names 'nowhere.yaml', which is not a file"):
        _ = PipedagConfig.default
