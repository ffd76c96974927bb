"""`log_production_flow`: a production flow as a model of MLflow, with all that is needed to load, serve and trace it."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import suppress
from importlib import import_module
from importlib.metadata import version
from pathlib import Path
from typing import Any, Final

from pipedag_core import ProductionFlow
from pipedag_core.config.settings import mask
from pipedag_core.errors import ConfigError, ProductionError
from pipedag_mlflow import library, lineage, names
from pipedag_mlflow.tracked import experiment_of, origin

#: The file that MLflow keeps as the model's code.
_CODE: Final = Path(__file__).with_name("model_code.py")


def log_production_flow(
    prod: ProductionFlow,
    name: str = "model",
    registered_model_name: str | None = None,
    input_example: Any = None,
    *,
    alias: str | None = None,
    run_id: str | None = None,
    tracking_uri: str | None = None,
    experiment_name: str | None = None,
    fixed_inputs: Mapping[str, Any] | None = None,
    code: str = "package",
    pickle: bool = False,
    pip_requirements: Sequence[str] | None = None,
    tags: Mapping[str, str] | None = None,
    verify: Mapping[str, Any] | None = None,
) -> Any:
    """Log a production flow as a model that MLflow's own tools load and serve, and register it if it is as good as in training.

    The model is the bundle of the production flow, and a file of code that reads it. It belongs to the MLflow run in which what is frozen in it was
    trained, as far as that is known: the one whose id the training has got (`get_run_id`), else that of the run that has committed it. How it is asked is
    written at `ProductionModel`. Before anything is logged, the model is loaded and asked with the example, and must answer as `prod.run` does.

    Args:
        prod: The production flow.
        name: Name of the model.
        registered_model_name: Make it a version of this registered model. `prod.verify()` is called first, and must pass.
        input_example: Inputs as `prod.run` takes them; by default the first rows that training had, where these can be had.
        alias: Alias for the version, such as "champion"; moved only when all else has succeeded.
        run_id: The MLflow run that the model belongs to; by default that of the training.
        tracking_uri: Server or database; None: what MLflow is set to.
        experiment_name: The experiment, where no run is known; by default the flow's name.
        fixed_inputs: Name -> value of inputs that are kept with the model, so that nobody has to send them: reference tables such as places and planes.
        code: "package": the flow's modules are put into the model; "reference": they must be importable where it is loaded.
        pickle: Whether blobs for which there is no safe format may be pickled.
        pip_requirements: What the model needs; by default what the flow's code imports, in the versions that are installed.
        tags: Tags of the model and of its version.
        verify: Arguments for `prod.verify`, such as config, flow or tolerances.

    Returns:
        MLflow's `ModelInfo`; with `registered_model_version` if it was registered.

    Raises:
        VerificationFailed: It is to be registered and does not give what training gave. Nothing is logged.
        InputMismatch: The example is not like what training had.
        ProductionError: MLflow cannot hand over the inputs, or the model does not answer as the production flow does. Nothing is logged.
        ConfigError: An alias without a registered model; or nobody takes connections at the server's address.
    """
    from pipedag_mlflow.asked import flat

    if alias is not None and registered_model_name is None:
        raise ConfigError(
            f"alias={alias!r} is given without registered_model_name. Name the registered model whose version it shall stand for."
        )
    options = dict(verify or {})
    if registered_model_name is not None:
        prod.verify(**options)
    training = _training(prod, options)
    fixed = flat(prod, fixed_inputs or {})
    uri = tracking_uri or library.default_uri()
    try:
        library.require_listener(uri)
    except OSError as error:
        raise ConfigError(
            f"No tracking server takes connections at {mask(uri)}: {error}. Start it, or name another tracking_uri."
        ) from error
    client = library.client(uri)
    with tempfile.TemporaryDirectory(prefix="pipedag-model-") as folder:
        bundle = prod.save(Path(folder) / "bundle", code=code, pickle=pickle)
        trained = lineage.training_runs(prod, client)
        facts = {**lineage.tags(prod, bundle), **({names.TRAINING_RUN: ", ".join(trained)} if trained else {}), **(tags or {})}
        saved = _save(
            prod,
            Path(folder),
            bundle,
            fixed,
            training,
            input_example,
            pip_requirements=list(pip_requirements or lineage.requirements(bundle, version("mlflow"))),
            metadata=facts,
            model_config={"trust_pickle": pickle},
        )
        belongs = run_id or (trained[0] if trained else None)
        experiment = (
            client.get_run(belongs).info.experiment_id
            if belongs
            else experiment_of(client, uri, experiment_name or prod.parts.program.flow)
        )
        description = f"```\n{prod.describe()}\n```"
        noted = {**origin(), **facts, "mlflow.note.content": names.cut(description, names.TAG_LENGTH)}
        info = _upload(client, experiment, name, belongs, noted, saved, Path(folder) / "model")
    if registered_model_name is not None:
        info.registered_model_version = _register(client, registered_model_name, alias, info, belongs, facts, description)
    return info


def _training(prod: ProductionFlow, verify: Mapping[str, Any]) -> dict[str, Any] | None:
    """Return what training had as inputs, flat; None where that cannot be had any more."""
    from pipedag_mlflow.asked import flat

    where = {key: value for key, value in verify.items() if key in ("config", "instance", "flow")}
    with suppress(Exception):
        return flat(prod, prod.training_inputs(**where))
    return None


# --- saving ---------------------------------------------------------------------------------------------------------------------------


def _save(
    prod: ProductionFlow,
    folder: Path,
    bundle: Path,
    fixed: dict[str, Any],
    training: dict[str, Any] | None,
    input_example: Any,
    **options: Any,
) -> Any:
    """Write the model below a folder and ask it; return MLflow's description of it."""
    from pipedag_mlflow.asked import nested
    from pipedag_mlflow.asking import ask
    from pipedag_mlflow.fixed import write_fixed
    from pipedag_mlflow.signature import example_of, signature_of

    artifacts = {"bundle": str(bundle)}
    if fixed:
        write_fixed(prod, fixed, folder / "fixed")
        artifacts["fixed"] = str(folder / "fixed")
    signature = signature_of(prod, fixed, training)
    source = training if input_example is None else input_example
    example = None if source is None else example_of(prod, fixed, source)
    described = import_module("mlflow.models").Model()
    if example is not None:
        # Told by the production flow itself if it makes no sense.
        prod.run(nested(prod, {**fixed, **example.inputs}))
    try:
        import_module("mlflow.pyfunc").save_model(
            path=str(folder / "model"),
            mlflow_model=described,
            python_model=str(_CODE),
            artifacts=artifacts,
            signature=signature,
            input_example=None if example is None else example.asked if example.params is None else (example.asked, example.params),
            **options,
        )
    except import_module("mlflow.exceptions").MlflowException as error:
        raise ProductionError(f"MLflow cannot make a model of the production flow of {prod.parts.program.flow!r}: {error}") from error
    if example is not None:
        ask(prod, described, folder / "model", fixed, example)
    return described


# --- logging --------------------------------------------------------------------------------------------------------------------------


def _upload(client: Any, experiment: str, name: str, belongs: str | None, facts: Mapping[str, str], described: Any, folder: Path) -> Any:
    """Make the model in MLflow, and return MLflow's information on it."""
    model = client.create_logged_model(experiment, name=name, source_run_id=belongs, tags=dict(facts), model_type="pipedag")
    try:
        described.run_id, described.model_id, described.model_uuid = belongs, model.model_id, model.model_id
        described.artifact_path = model.artifact_location
        described.save(str(folder / "MLmodel"))
        client.log_model_artifacts(model.model_id, str(folder))
        if belongs is not None:
            client.log_outputs(belongs, [library.entities().LoggedModelOutput(model.model_id, step=0)])
            _take_metrics(client, belongs, model.model_id)
        model = client.finalize_logged_model(model.model_id, "READY")
    except BaseException:
        with suppress(Exception):
            client.finalize_logged_model(model.model_id, "FAILED")
        raise
    return described.get_model_info(model)


def _take_metrics(client: Any, mlflow_run_id: str, model_id: str) -> None:
    """Show the evaluation that a run documents at the model, too; not how long tasks took."""
    metric = library.entities().Metric
    found = [
        metric(key, value, at, step, model_id=model_id)
        for key in client.get_run(mlflow_run_id).data.metrics
        if not key.startswith(names.OBSERVED)
        for value, at, step in [(item.value, item.timestamp, item.step) for item in client.get_metric_history(mlflow_run_id, key)][-1:]
    ]
    for start in range(0, len(found), 1000):
        client.log_batch(mlflow_run_id, metrics=found[start : start + 1000])


def _register(client: Any, name: str, alias: str | None, info: Any, belongs: str | None, facts: Mapping[str, str], description: str) -> int:
    """Make a model a version of a registered model, and return its number."""
    exists = import_module("mlflow.exceptions").MlflowException
    try:
        client.create_registered_model(name)
    except exists as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise
    # A server knows its models. A database is looked into by this process, which looks for the model where MLflow is set to.
    here = client.tracking_uri.startswith("http") or client.tracking_uri == library.default_uri()
    source = f"models:/{info.model_id}" if here else client.get_logged_model(info.model_id).artifact_location
    made = client.create_model_version(name, source, run_id=belongs, tags=dict(facts), description=description, model_id=info.model_id)
    # Where MLflow's page of the model looks for its versions.
    client.set_logged_model_tags(info.model_id, {"mlflow.modelVersions": json.dumps([{"name": name, "version": made.version}])})
    if alias is not None:
        client.set_registered_model_alias(name, alias, made.version)
    return int(made.version)
