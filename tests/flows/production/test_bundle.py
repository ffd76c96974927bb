"""Bundles: what is saved, what is refused, and that a bundle is all that is needed."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import textwrap
import warnings
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pytest

from pipedag_core import Blob, Flow, InOutSpecification, ProductionFlow, Stage, materialize
from pipedag_core.errors import BundleRefused, BundleWarning, ProductionError
from pipedag_core.production import bundle as bundles
from tests.flows.production import delays


@pytest.fixture
def bundle(prod, tmp_path):
    return prod.save(tmp_path / "bundle")


def manifest(bundle):
    return json.loads((bundle / "manifest.json").read_text("utf-8"))


def rewrite(bundle, change):
    """Change a manifest and make its digest right again, as somebody who knows how would."""
    content = manifest(bundle)
    change(content)
    content["digest"] = bundles._digest(content)
    (bundle / "manifest.json").write_text(json.dumps(content), "utf-8")


def contents(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


# --- there and back -----------------------------------------------------------------------------------------------------------------


def test_a_loaded_bundle_gives_the_same_as_what_was_saved(prod, bundle, inputs):
    loaded = ProductionFlow.load(bundle)
    pd.testing.assert_frame_equal(loaded.run(inputs), prod.run(inputs))
    assert loaded.inputs == prod.inputs
    assert loaded.outputs == prod.outputs
    assert loaded.describe() == prod.describe()
    assert loaded.provenance == prod.provenance


def test_a_loaded_bundle_checks_inputs_as_before(bundle, inputs):
    loaded = ProductionFlow.load(bundle)
    inputs["clean"]["flights"] = inputs["clean"]["flights"].drop("minutes")
    with pytest.raises(ProductionError, match="missing column 'minutes'"):
        loaded.run(inputs)


def test_equal_production_flows_give_equal_bytes(trained, config, tmp_path):
    flow, spec = trained
    for name in ("one", "two"):
        flow.extract(spec, config=config).save(tmp_path / name, code="package")
    assert contents(tmp_path / "one") == contents(tmp_path / "two")
    assert len(contents(tmp_path / "one")) >= 3


def test_a_loaded_bundle_saves_to_the_same_bytes(bundle, tmp_path):
    again = ProductionFlow.load(bundle).save(tmp_path / "again")
    assert contents(again) == contents(bundle)


def test_frozen_tables_are_the_stored_bytes(bundle, config, store_folder):
    stored = {sha256(path.read_bytes()).hexdigest() for path in store_folder.rglob("*.parquet")}
    frozen = list(bundle.rglob("*.parquet"))
    assert [path.name for path in frozen] == ["calibration.usual.parquet"]
    assert sha256(frozen[0].read_bytes()).hexdigest() in stored


def test_a_bundle_is_replaced_as_a_whole_and_nothing_else_is(prod, bundle, tmp_path):
    (bundle / "tables" / "stray.parquet").write_bytes(b"")
    prod.save(bundle)
    assert "tables/stray.parquet" not in contents(bundle)
    other = tmp_path / "mine"
    other.mkdir()
    (other / "file").write_text("x")
    with pytest.raises(ProductionError, match="something else in it than a bundle"):
        prod.save(other)
    with pytest.raises(ProductionError, match="no folder"):
        prod.save(other / "file")
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".")]


def elsewhere(code, folder, *, path=()):
    """Run code in a process that knows nothing of the tests, in a folder without anything in it."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(map(str, path)), "PYTHONWARNINGS": "error"}
    told = subprocess.run(
        (sys.executable, "-c", textwrap.dedent(code)), cwd=folder, env=environment, capture_output=True, text=True, check=False, timeout=120
    )
    assert told.returncode == 0, told.stderr
    return told.stdout


SCORE = """
    import json
    import polars as pl
    from pipedag_core import ProductionFlow
    prod = ProductionFlow.load({bundle!r})
    flights = pl.DataFrame({{"id": [2], "carrier": ["AA"], "minutes": [30.0]}})
    places = pl.DataFrame({{"carrier": ["UA", "AA", "B6"], "hub": ["EWR", "JFK", "JFK"]}})
    print(json.dumps(prod.run({{"clean": {{"flights": flights, "places": places}}}}, as_type=pl.DataFrame).to_dicts()))
"""


TRAIN = """
    import sys
    from pipedag_core import PipedagConfig
    import house.my_delays
    store = {{"class": "parquet", "args": {{"base_path": {store!r} + "/{{instance_id}}"}}}}
    config = PipedagConfig({{"instances": {{"__any__": {{"table_store": store}}}}}}).get()
    flow, spec = house.my_delays.make()
    assert flow.run(config=config).successful
    prod = flow.extract(spec, config=config)
    prod.save("with", code="package")
    prod.save("without")
"""


@pytest.fixture
def trained_elsewhere(tmp_path):
    """A folder with bundles with and without code, and the code of a flow that is nowhere else; and a folder with nothing in it."""
    (tmp_path / "code" / "house").mkdir(parents=True)
    (tmp_path / "empty").mkdir()
    text = (
        Path(delays.__file__)
        .read_text("utf-8")
        .replace("class Model:", "class Model(Base):")
        .replace("@dataclass(frozen=True)\nclass Model", "from house.base import Base\n\n\n@dataclass(frozen=True)\nclass Model")
    )
    (tmp_path / "code" / "house" / "my_delays.py").write_text(text, "utf-8")
    (tmp_path / "code" / "house" / "base.py").write_text("class Base:\n    pass\n", "utf-8")
    elsewhere(TRAIN.format(store=str(tmp_path / "store")), tmp_path, path=[tmp_path / "code"])
    return tmp_path


def test_a_bundle_with_its_code_runs_where_there_is_nothing_else(trained_elsewhere, scores):
    bundle = trained_elsewhere / "with"
    assert {"code/house/my_delays.py", "code/house/base.py"} <= {*contents(bundle)}
    told = elsewhere(SCORE.format(bundle=str(bundle)), trained_elsewhere / "empty")
    assert json.loads(told) == scores.filter(pl.col("id") == 2).to_dicts()


def test_a_bundle_without_its_code_imports_it(trained_elsewhere, scores):
    bundle = trained_elsewhere / "without"
    told = elsewhere(SCORE.format(bundle=str(bundle)), trained_elsewhere / "empty", path=[trained_elsewhere / "code"])
    assert json.loads(told) == scores.filter(pl.col("id") == 2).to_dicts()
    with pytest.raises(BundleRefused, match=r"there is no module 'house' here.*code='package'"):
        ProductionFlow.load(bundle)


def test_packaged_code_that_another_module_stands_in_for_is_refused(prod, tmp_path, monkeypatch):
    bundle = prod.save(tmp_path / "packaged", code="package")
    code = bundle / "code" / "tests" / "flows" / "production" / "delays.py"
    raw = code.read_bytes() + b"\n# changed\n"
    code.write_bytes(raw)

    def change(content):
        content["files"]["code/tests/flows/production/delays.py"] = {"sha256": sha256(raw).hexdigest(), "bytes": len(raw)}

    rewrite(bundle, change)
    with pytest.raises(BundleRefused, match=r"another module 'tests\.flows\.production\.delays' is loaded"):
        ProductionFlow.load(bundle)


# --- blobs --------------------------------------------------------------------------------------------------------------------------


@dataclass
class Parts:
    name: str
    weights: Any


class Opaque:
    """An object that only pickle can keep."""

    def __init__(self):
        self.value = 4

    def __eq__(self, other):
        return type(other) is Opaque and other.value == self.value

    __hash__ = None


def _estimator():
    from sklearn.ensemble import HistGradientBoostingClassifier

    frame = pd.DataFrame({"a": [0.0, 1.0] * 50, "b": np.linspace(0, 1, 100)})
    return HistGradientBoostingClassifier(max_iter=5, min_samples_leaf=2, categorical_features=["a"]).fit(frame, frame["b"] > 0.3)


def _onnx():
    from onnx import TensorProto, helper

    x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, [1]) for name in "xy")
    return helper.make_model(helper.make_graph([helper.make_node("Relu", ["x"], ["y"])], "relu", [x], [y]))


BLOBS = {
    "json": lambda: {"a": [1, 2.5, None], ("x", 1): {"y"}, "t": (1, float("inf"))},
    "dataclass": lambda: delays.Model((("a", 1.0),)),
    "numpy": lambda: {"matrix": np.arange(6, dtype="float32").reshape(2, 3), "one": np.float32(0.1)},
    "nested": lambda: Parts("p", [np.array([1, 2]), {"z": np.array(["a"])}]),
    "arrow": lambda: pa.table({"x": [1, None]}),
    "polars": lambda: [pl.DataFrame({"x": ["a", None], "y": [[1], []]})],
    "pandas": lambda: pd.DataFrame({"x": ["a", "b"], "y": [1.5, np.nan]}),
    "estimator": _estimator,
    "onnx": _onnx,
}

UNSAFE = {
    "opaque": Opaque,
    "index": lambda: pd.DataFrame({"x": [1]}, index=["a"]),
    "timestamp": lambda: {"t": pd.Timestamp("2020-01-01", tz="Europe/Berlin")},
    "objects": lambda: np.array([Opaque()], dtype=object),
}

_made: dict[str, Any] = {}


@materialize(version="1.0")
def make_blob(kind: str):
    return Blob({**BLOBS, **UNSAFE}[kind](), "it")


@materialize(version="1.0")
def rows():
    return pl.DataFrame({"x": [1]})


@materialize(version="1.0", input_type=pl.DataFrame)
def hand_out(x: pl.DataFrame, blob: Any):
    _made["seen"] = blob
    return x


def with_blob(kind, config):
    with Flow("blobs") as flow:
        with Stage("a"):
            x, blob = rows(), make_blob(kind)
        with Stage("b"):
            out = hand_out(x, blob)
    assert flow.run(config=config).successful
    return flow.extract(InOutSpecification(input={"x": x}, const=blob, output=out), config=config)


def told(obj):
    """Return an object as something that can be compared."""
    if isinstance(obj, Parts):
        return ("Parts", obj.name, told(obj.weights))
    if isinstance(obj, (list, tuple, set)):
        return (type(obj), [told(item) for item in obj])
    if isinstance(obj, dict):
        return {key: told(item) for key, item in obj.items()}
    if isinstance(obj, (np.ndarray, np.generic)):
        return (type(obj), str(obj.dtype), obj.tolist())
    if isinstance(obj, pd.DataFrame):
        return (obj.to_dict("tight").__repr__(), [str(kind) for kind in obj.dtypes])
    if isinstance(obj, pl.DataFrame):
        return (obj.to_dicts(), obj.schema)
    if hasattr(obj, "predict_proba"):
        return obj.predict_proba(pd.DataFrame({"a": [0.0, 1.0], "b": [0.1, 0.9]})).tolist()
    return obj


@pytest.mark.parametrize("kind", BLOBS)
def test_blobs_come_back_as_they_were_without_pickle(kind, config, tmp_path):
    prod = with_blob(kind, config)
    bundle = prod.save(tmp_path / "bundle")
    assert not [*bundle.rglob("*.pickle")]
    ProductionFlow.load(bundle).run({"x": pl.DataFrame({"x": [1]})})
    expected = BLOBS[kind]()
    assert type(_made["seen"]) is type(expected)
    assert told(_made["seen"]) == told(expected)
    again = with_blob(kind, config).save(tmp_path / "again")
    assert contents(again) == contents(bundle)


@pytest.mark.parametrize("kind", UNSAFE)
def test_what_has_no_safe_format_is_pickled_only_if_both_ends_say_so(kind, config, tmp_path):
    prod = with_blob(kind, config)
    with pytest.raises(ProductionError, match=r"the blob a\.it is a .* for which there is no safe format.*pickle=True"):
        prod.save(tmp_path / "bundle")
    assert not (tmp_path / "bundle").exists()
    bundle = prod.save(tmp_path / "bundle", pickle=True)
    with pytest.raises(BundleRefused, match=r"blobs/a\.it\.pickle.*trust_pickle=True"):
        ProductionFlow.load(bundle)
    ProductionFlow.load(bundle, trust_pickle=True).run({"x": pl.DataFrame({"x": [1]})})
    if kind == "opaque":
        assert _made["seen"] == Opaque()


def test_a_pickle_is_refused_before_anything_is_imported(config, tmp_path):
    bundle = with_blob("opaque", config).save(tmp_path / "bundle", pickle=True, code="package")
    refused = """
        import sys
        from pipedag_core import ProductionFlow
        from pipedag_core.errors import BundleRefused
        try:
            ProductionFlow.load({bundle!r})
        except BundleRefused as error:
            assert not any(name.startswith("tests") for name in sys.modules)
            print("refused")
    """
    assert "refused" in elsewhere(refused.format(bundle=str(bundle)), tmp_path)


def test_parts_of_a_model_that_are_not_known_to_be_safe_are_refused(config, tmp_path):
    bundle = with_blob("estimator", config).save(tmp_path / "bundle")
    [file] = bundle.rglob("*.skops")
    import skops.io as sio
    from sklearn.preprocessing import FunctionTransformer

    raw = sio.dumps(FunctionTransformer(func=os.getcwd))
    file.write_bytes(raw)
    name = str(file.relative_to(bundle))
    rewrite(bundle, lambda content: content["files"].update({name: {"sha256": sha256(raw).hexdigest(), "bytes": len(raw)}}))
    with pytest.raises(BundleRefused, match=r"blobs/a\.it\.skops.*not known to be safe"):
        ProductionFlow.load(bundle)


# --- code ---------------------------------------------------------------------------------------------------------------------------


def test_functions_that_nobody_can_import_are_named(config, tmp_path):
    @materialize(version="1.0", input_type=pl.DataFrame)
    def local(x: pl.DataFrame):
        return x

    with Flow("local") as flow:
        with Stage("a"):
            x = rows()
            out = local(x)
    assert flow.run(config=config).successful
    prod = flow.extract(InOutSpecification(input={"x": x}, output=out), config=config)
    with pytest.raises(ProductionError, match=r"the function of a\.local is not what stands at"):
        prod.save(tmp_path / "bundle")


# --- what is refused ----------------------------------------------------------------------------------------------------------------


def test_every_file_that_is_changed_cut_short_or_missing_is_named(prod, tmp_path):
    names = [name for name in contents(prod.save(tmp_path / "b", code="package")) if name != "manifest.json"]
    assert names
    for name in names:
        for how in ("changed", "cut", "missing", "link"):
            bundle = prod.save(tmp_path / "b", code="package")
            file = bundle / name
            raw = file.read_bytes()
            if how == "changed":
                file.write_bytes(bytes([raw[0] ^ 1]) + raw[1:])
            elif how == "cut":
                file.write_bytes(raw[:-1])
            else:
                file.unlink()
            if how == "link":
                (tmp_path / "outside").write_bytes(raw)
                file.symlink_to(tmp_path / "outside")
            with pytest.raises(BundleRefused) as caught:
                ProductionFlow.load(bundle)
            assert caught.value.file == name
            assert str(caught.value).startswith(f"{name}: ")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda raw: raw[: len(raw) // 2], "no JSON"),
        (lambda raw: raw.replace(b'"dialect": "duckdb"', b'"dialect": "sqlite"'), "changed"),
        (lambda raw: b"[]", "not the manifest"),
        (lambda raw: b"\xff\xfe", "no JSON"),
        (lambda raw: b'{"format": "something else"}', "not the manifest"),
    ],
)
def test_a_manifest_that_was_changed_or_is_foreign_is_refused(bundle, change, said):
    file = bundle / "manifest.json"
    file.write_bytes(change(file.read_bytes()))
    with pytest.raises(BundleRefused, match=rf"manifest\.json: .*{said}"):
        ProductionFlow.load(bundle)


def test_what_is_no_bundle_is_refused(tmp_path):
    with pytest.raises(BundleRefused, match="no folder"):
        ProductionFlow.load(tmp_path / "nothing")
    (tmp_path / "empty").mkdir()
    with pytest.raises(BundleRefused, match=r"manifest\.json: it is not there"):
        ProductionFlow.load(tmp_path / "empty")


def test_a_newer_format_is_refused(bundle):
    rewrite(bundle, lambda content: content.update(version=2))
    with pytest.raises(BundleRefused, match="format version 2; this pipedag-core reads up to 1"):
        ProductionFlow.load(bundle)


@pytest.mark.parametrize("path", ["../outside", "/etc/hostname", "tables/../../outside", "tables//x", "C:\\x", "./x"])
def test_paths_that_leave_the_bundle_are_refused(bundle, path):
    (bundle.parent / "outside").write_bytes(b"")
    rewrite(bundle, lambda content: content["files"].update({path: {"sha256": sha256(b"").hexdigest(), "bytes": 0}}))
    with pytest.raises(BundleRefused, match="leads out of the bundle"):
        ProductionFlow.load(bundle)


def test_a_folder_that_is_a_link_is_refused(bundle, tmp_path):
    (bundle / "tables").rename(tmp_path / "elsewhere")
    (bundle / "tables").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(BundleRefused, match="leads out of the bundle"):
        ProductionFlow.load(bundle)


@pytest.mark.parametrize("key", ["program", "consts", "inputs", "outputs", "modules", "code", "packages", "dialect", "python", "files"])
@pytest.mark.parametrize("value", [None, 3, {"$": "strange"}, ["x"]])
def test_a_manifest_with_nonsense_in_it_is_refused(bundle, key, value):
    if key == "packages" and isinstance(value, dict):
        value = {"polars": 3, "x": None}
    rewrite(bundle, lambda content: content.update({key: value}))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", BundleWarning)
        with pytest.raises(BundleRefused):
            ProductionFlow.load(bundle)


def test_other_versions_and_other_code_are_warned_about(bundle):
    def change(content):
        content["packages"] = {"polars": "0.0.1", "not-there": "1.0"}
        content["python"] = "2.7.18"
        content["code"]["modules"]["tests.flows.production.delays"]["sha256"] = "0"

    rewrite(bundle, change)
    with pytest.warns(BundleWarning) as caught:
        ProductionFlow.load(bundle)
    [warning] = caught
    for said in (
        "polars 0.0.1 is",
        "not-there 1.0 is not installed",
        "Python 2.7.18 is",
        "the code of module tests.flows.production.delays",
    ):
        assert said in str(warning.message)
    assert warning.filename == __file__


def test_secrets_in_options_of_hooks_are_not_written(prod, tmp_path):
    from dataclasses import replace

    from pipedag_core.config.settings import Secret

    prod.parts = replace(prod.parts, hook_args={"pandas": {"password": Secret("geheim")}})
    with pytest.raises(ProductionError, match="hook_args: a secret is never written"):
        prod.save(tmp_path / "bundle")
