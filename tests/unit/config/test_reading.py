"""Mistakes in a configuration are all told, with the file, the path in it, and what was probably meant."""

from __future__ import annotations

import re
import subprocess
import sys

import pytest

from pipedag_core.config.catalog_place import catalog_place
from pipedag_core.config.context import PipedagConfig
from pipedag_core.errors import ConfigError


def faults(raw):
    with pytest.raises(ConfigError) as caught:
        PipedagConfig(raw)
    return str(caught.value)


@pytest.mark.parametrize(
    ("raw", "message"),
    [
        ({"instnces": {}}, "instnces is not a known key. Did you mean 'instances'?"),
        ({"instances": {"full": {"fial_fast": True}}}, "instances.full.fial_fast is not a known key. Did you mean 'fail_fast'?"),
        (
            {"instances": {"full": {"retention": {"comitted": 1}}}},
            "instances.full.retention.comitted is not a known key. Did you mean 'committed'?",
        ),
        ({"instances": {"full": {"fail_fast": "yes"}}}, "instances.full.fail_fast must be true or false, not 'yes'."),
        ({"instances": {"full": {"fail_fast": 1}}}, "instances.full.fail_fast must be true or false, not 1."),
        ({"instances": {"full": {"content_hash_rows": True}}}, "content_hash_rows must be a whole number from 0, not True."),
        ({"instances": {"full": {"retention": {"committed": 0}}}}, "retention.committed must be a whole number from 1, not 0."),
        ({"instances": {"full": {"retention": {"minimum_age": "soon"}}}}, "minimum_age must be a duration"),
        ({"instances": {"full": {"lease_ttl": 0}}}, "lease_ttl must be a duration above zero"),
        ({"instances": {"full": {"cache_validation": {"mode": "sometimes"}}}}, "cache_validation.mode must be one of normal, "),
        ({"instances": {"full": {"table_store": "parquet"}}}, "instances.full.table_store must be a mapping, not 'parquet'."),
        ({"instances": ["full"]}, "instances must be a mapping"),
        (
            {"instances": {"full": {"auto_table": [1]}}},
            "instances.full.auto_table[0] must be a type by its top package and class, such as pandas.DataFrame, not 1.",
        ),
        ({"instances": {"full": {"auto_blob": ["Model"]}}}, "instances.full.auto_blob[0] must be a type by its top package and class"),
        (
            {"instances": {"full": {"per_user_template": "mine"}}},
            "instances.full.per_user_template must be text with {username} in it, not 'mine'.",
        ),
        ({"flows": {"f": {"instances": {"x": {"instances": {}}}}}}, "flows.f.instances.x.instances is not a known key."),
        ({"fail_fast": True}, "fail_fast: It belongs to an instance. Write it under instances.__any__."),
        ({"instances": {"full": {"network_interface": "127.0.0.1"}}}, "network_interface: No server runs beside a flow"),
        ({"instances": {"full": {"metadata_table_store": {}}}}, "metadata_table_store: It is called metadata_store."),
    ],
)
def test_a_mistake_is_told_with_its_path(raw, message):
    assert message in faults(raw)


def test_all_mistakes_are_told_at_once_with_the_file(tmp_path):
    file = tmp_path / "pipedag.yaml"
    file.write_text("nme: x\ninstances: {full: {fail_fast: 3}}\n")
    with pytest.raises(ConfigError) as caught:
        PipedagConfig(file)
    assert str(file) in str(caught.value)
    assert len(caught.value.faults) == 2


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: [", "is not valid YAML"),
        ("- a", "must be a mapping at its top, not list"),
        ("name: a\nname: b", "'name' stands twice"),
        ("name: !!python/object/apply:os.getcwd []", "is not valid YAML"),
        ("? [a]\n: b", "is not a known key|is not valid YAML"),
    ],
)
def test_a_file_that_is_not_a_yaml_mapping_is_refused_by_name(tmp_path, text, message):
    file = tmp_path / "pipedag.yaml"
    file.write_text(text)
    with pytest.raises(ConfigError, match=message):
        PipedagConfig(file)


def test_a_file_that_is_not_there_is_refused_by_name(tmp_path):
    with pytest.raises(ConfigError, match=r"nothing.yaml cannot be read"):
        PipedagConfig(tmp_path / "nothing.yaml")


def test_an_empty_file_says_nothing(tmp_path):
    file = tmp_path / "pipedag.yaml"
    file.write_text("")
    assert PipedagConfig(file).get().instance_id == "default"


def test_yaml_anchors_and_merge_keys_work(tmp_path):
    file = tmp_path / "pipedag.yaml"
    file.write_text("technical_setups: {a: &a {fail_fast: true}, b: {<<: *a, lease_ttl: 5s}}\ninstances: {x: {technical_setup: b}}\n")
    config = PipedagConfig(file).get("x")
    assert (config.fail_fast, config.lease_ttl) == (True, 5.0)


@pytest.mark.parametrize(
    ("section", "message"),
    [
        (
            {"table_store": {"args": {"base_pth": "/x/{instance_id}"}}},
            r"table_store.args.base_pth is not a known key. Did you mean 'base_path'",
        ),
        ({"table_store": {"args": {"threads": "many"}}}, r"table_store.args.threads must be a whole number from 1"),
        ({"orchestration": {"class": "thread"}}, r"orchestration.class is 'thread', but must be one of sequential, threads, dask, prefect"),
        ({"orchestration": {"class": "threads", "args": {"max_workers": 0}}}, r"max_workers must be a whole number from 1, not 0"),
    ],
)
def test_arguments_of_parts_are_checked_when_the_instance_is_asked_for(section, message):
    with pytest.raises(ConfigError, match=message):
        PipedagConfig({"instances": {"full": section}}).get("full")


def test_environment_variables_are_expanded_anywhere_in_texts(monkeypatch):
    monkeypatch.setenv("PROBE", "value")
    monkeypatch.setenv("PROBE_N", "3")
    monkeypatch.setenv("PROBE_FLAG", "true")
    config = PipedagConfig(
        {
            "instances": {
                "full": {
                    "attrs": {"a": ["x-{$PROBE}", {"b": "{$PROBE}{$PROBE_N}"}], "format": "{name}"},
                    "fail_fast": "{$PROBE_FLAG}",
                    "table_store": {"args": {"base_path": "/{$PROBE}/{instance_id}", "threads": "{$PROBE_N}"}},
                }
            }
        }
    ).get("full")
    assert config.attrs.a == ("x-value", {"b": "value3"})
    assert config.attrs.format == "{name}"
    assert config.fail_fast is True
    assert config.table_store.args == {"base_path": "/value/full", "threads": 3}


def test_what_an_environment_variable_holds_is_not_expanded_again(monkeypatch):
    monkeypatch.setenv("PROBE", "{instance_id}{$HOME}{x}")
    config = PipedagConfig({"instances": {"full": {"table_store": {"args": {"base_path": "{$PROBE}/{instance_id}"}}}}}).get("full")
    assert config.table_store.args.base_path == "{instance_id}{$HOME}{x}/full"


def test_missing_environment_variables_are_told_all_at_once_but_only_for_the_instance_asked_for(monkeypatch):
    for name in ("PROBE_A", "PROBE_B", "PROBE_C"):
        monkeypatch.delenv(name, raising=False)
    config = PipedagConfig(
        {"instances": {"full": {"attrs": {"a": "{$PROBE_A}", "b": "{$PROBE_B}"}}, "mini": {"attrs": {"c": "{$PROBE_C}"}}}}
    )
    with pytest.raises(ConfigError) as caught:
        config.get("full")
    assert "attrs.a needs the environment variable PROBE_A, which is not set." in str(caught.value)
    assert "attrs.b needs the environment variable PROBE_B" in str(caught.value)
    assert "PROBE_C" not in str(caught.value)


def test_an_unknown_placeholder_in_an_address_is_refused_with_the_nearest():
    with pytest.raises(ConfigError, match=r"placeholder {instance_di}, which is not known. Did you mean {instance_id}\?"):
        PipedagConfig({"instances": {"full": {"table_store": {"args": {"base_path": "/x/{instance_di}"}}}}}).get("full")


def test_secrets_can_stand_in_a_file_of_their_own(tmp_path):
    (tmp_path / "secrets.yaml").write_text("login: ada\npassword: top\n")
    file = tmp_path / "pipedag.yaml"
    file.write_text(
        "instances: {full: {table_store: {class: sql, args: "
        "{url: 'postgresql://{login}:{password}@host/{instance_id}', url_attrs_file: secrets.yaml}}}}"
    )
    config = PipedagConfig(file).get("full")
    assert config.table_store.args.url.reveal() == "postgresql://ada:top@host/full"
    assert "top" not in repr(config)


def test_yaml_is_not_imported_where_there_is_no_file(tmp_path):
    code = (
        "import sys; from pipedag_core.config.context import PipedagConfig; PipedagConfig.default.get(); "
        "print([name for name in ('yaml', 'sqlalchemy', 'duckdb', 'pyarrow', 'pandas') if name in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        env={"HOME": str(tmp_path), "PYTHONPATH": ":".join(sys.path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.stdout, done.stderr) == ("[]\n", "")


@pytest.mark.parametrize(
    ("section", "message"),
    [
        (
            {"auto_table": ["panda.DataFrame"]},
            "auto_table[0] is 'panda.DataFrame', for which there is no hook. Did you mean 'pandas.DataFrame'?",
        ),
        ({"auto_table": "polars.Dataframe"}, "Did you mean 'polars.DataFrame'?"),
        ({"hook_args": {"panda": {}}}, "hook_args.panda is not a known key. Did you mean 'pandas'?"),
        ({"table_store": {"hook_args": {"polars.Frame": {}}}}, "hook_args.polars.Frame is not a known key."),
        (
            {"hook_args": {"pandas": {"dtype_backnd": "pyarrow"}}},
            "hook_args.pandas.dtype_backnd is not a known key. Did you mean 'dtype_backend'?",
        ),
        (
            {"hook_args": {"pandas.DataFrame": {"dtype_backend": "arrow"}}},
            "hook_args.pandas.DataFrame.dtype_backend must be one of numpy, numpy_nullable, pyarrow, not 'arrow'.",
        ),
        ({"hook_args": {"polars": {"rechunk": True}}}, "hook_args.polars.rechunk is not a known key. Known keys here: none."),
        (
            {"table_store": {"args": {"base_path": "{instance_id}", "memory_limit": "much"}}},
            "memory_limit must be a size (512MB, 4GB, 2GiB), not 'much'.",
        ),
    ],
)
def test_types_without_a_hook_and_sizes_that_are_none_are_refused(section, message):
    with pytest.raises(ConfigError, match=re.escape(message)):
        PipedagConfig({"instances": {"full": section}}).get("full")


@pytest.mark.parametrize("size", ["512MB", "4 GB", "1.5gib", "80%", "2G", "1000 bytes"])
def test_sizes_are_what_duckdb_takes(size):
    import duckdb

    args = {"base_path": "{instance_id}", "memory_limit": size}
    config = PipedagConfig({"instances": {"full": {"table_store": {"args": args}}}}).get("full")
    duckdb.connect().execute("SET memory_limit = $1", [config.table_store.args.memory_limit])


def test_a_type_of_a_library_without_hooks_may_descend_from_one_with_a_hook():
    assert PipedagConfig({"instances": {"full": {"auto_table": "geopandas.GeoDataFrame"}}}).get("full").auto_table == (
        "geopandas.GeoDataFrame",
    )


def test_what_is_wrong_with_yaml_is_told_with_the_file(tmp_path):
    (tmp_path / "bad.yaml").write_text("a: [1\nb: 2")
    with pytest.raises(ConfigError, match=r"in bad\.yaml, line 2"):
        PipedagConfig(tmp_path / "bad.yaml")


def test_an_empty_file_is_not_said_to_be_missing(tmp_path):
    (tmp_path / "pipedag.yaml").write_text("# nothing yet\n")
    with pytest.raises(ConfigError, match=r"no instance 'full': .*pipedag\.yaml says nothing"):
        PipedagConfig(tmp_path / "pipedag.yaml").get("full")


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (
            {"url": "mysql://u:hush@h/full"},
            "table_store.args.url is 'mysql://u:***@h/full', but the SQL store keeps tables in PostgreSQL or in a DuckDB file.",
        ),
        ({"url": "duckdb:full.duckdb", "schema_prefix": "{instance_id}_"}, "or duckdb:///path for a file"),
        ({"schema_prefix": "{instance_id}_"}, "table_store.args.url is missing"),
    ],
)
def test_an_address_of_another_database_is_refused_with_the_ways_to_write_one(args, message):
    config = PipedagConfig({"instances": {"full": {"table_store": {"class": "sql", "args": args}}}}).get("full")
    with pytest.raises(ConfigError, match=re.escape(message)):
        catalog_place(config)
