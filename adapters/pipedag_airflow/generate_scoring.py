"""From a bundle and places to the text of a scoring DAG. Imports no Airflow."""

from __future__ import annotations

import os
import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any, Final, final

from pipedag_airflow.generate import Generated, moment_of, schedule_of
from pipedag_airflow.names import safe_id, scores_uri
from pipedag_airflow.render import Code, asset, head, render_call
from pipedag_core.config.flows import make_importable
from pipedag_core.errors import ConfigError, PipedagError

_MANIFEST: Final = "manifest.json"
#: What a place begins with that is a table.
_TABLE: Final = "table:"


@final
@dataclass(frozen=True)
class ScoringRequest:
    """What somebody asked for on the command line.

    Attributes:
        bundle: The bundle's folder, as it is from the working directory. It need not be there yet.
        folder: Where the file goes.
        inputs, outputs: Name -> place, as for `pipedag score`; places may be templates.
        slice: `COLUMN=VALUE`, the rows of a run in tables; may be a template.
        instance: Instance whose tables are read and written.
        config: The configuration, if it is not to be looked for.
        project: Folder from which relative places are seen; by default the working directory.
        dag_id: By default the bundle's name and `_scoring`.
        schedule, on_assets, start_date, tags, python, command, connections: As for flows.
        trust_pickle: Read pickles in the bundle.
        words: The command's words after `pipedag`, for the header.
    """

    bundle: Path
    folder: Path
    inputs: Mapping[str, str]
    outputs: Mapping[str, str]
    slice: str | None = None
    instance: str | None = None
    config: Path | None = None
    project: Path | None = None
    dag_id: str | None = None
    schedule: str | None = None
    on_assets: Sequence[str] = ()
    start_date: str | None = None
    tags: Sequence[str] = ()
    python: str | None = None
    command: str | None = None
    connections: Mapping[str, str] = field(default_factory=dict[str, str])
    trust_pickle: bool = False
    words: Sequence[str] = ()


def generate_scoring(request: ScoringRequest) -> Generated:
    """Return the scoring DAG that somebody asked for.

    Nothing of the text comes from the bundle, so that a new one of the same names needs no new file. If it is there, the names are compared with it.

    Raises:
        ConfigError: An option makes no sense, or the bundle has no input or output of that name.
    """
    if not request.outputs:
        raise ConfigError("Say where the outputs go: --output NAME=FILE, or NAME=table:STAGE.TABLE.")
    notes = [*_check_names(request), *_check_places(request)]
    dag_id = request.dag_id or safe_id(f"{request.bundle.resolve().name}_scoring")
    if safe_id(dag_id) != dag_id:
        raise ConfigError(f"--dag-id {dag_id!r}: use letters, digits, `_` and `-`; for example {safe_id(dag_id)!r}.")
    return Generated(request.folder / f"{dag_id}.py", _text(request, dag_id), tuple(notes))


def _check_names(request: ScoringRequest) -> list[str]:
    if not (request.bundle / _MANIFEST).is_file():
        return [f"There is no bundle at {request.bundle} yet, so the names of inputs and outputs were not compared with it."]
    from pipedag_core import ProductionFlow

    make_importable((request.project or Path.cwd()).resolve())
    try:
        prod = ProductionFlow.load(request.bundle, trust_pickle=request.trust_pickle)
    except PipedagError as error:
        # Its requirements may be there only where it runs.
        return [f"The bundle {request.bundle} cannot be loaded here, so the names were not compared with it: {error}"]
    known_inputs, known_outputs = list(_names(prod.inputs)), list(prod.outputs)
    problems = [
        f"there is no {kind} {name!r}; there are: {', '.join(known)}"
        for kind, given, known in (("input", request.inputs, known_inputs), ("output", request.outputs, known_outputs))
        for name in given
        if name not in known
    ]
    if set(request.outputs) == set(known_outputs):
        problems += [f"input {name!r} is missing" for name in known_inputs if name not in request.inputs]
    if problems:
        raise ConfigError("\n".join([f"The bundle {str(request.bundle)!r} does not fit:", *(f"  {problem}" for problem in problems)]))
    return []


def _names(inputs: Mapping[str, Any], before: str = "") -> Iterator[str]:
    """Yield the dotted names of inputs, also of those in dicts."""
    for name, shape in inputs.items():
        if isinstance(shape, Mapping):
            yield from _names(shape, f"{before}{name}.")
        else:
            yield f"{before}{name}"


def _check_places(request: ScoringRequest) -> list[str]:
    tables = [place for place in request.outputs.values() if place.startswith(_TABLE)]
    if request.slice is not None and not tables:
        raise ConfigError(f"--slice {request.slice} is for outputs that are tables: --output NAME=table:STAGE.TABLE.")
    if request.slice is not None and not all(request.slice.partition("=")):
        raise ConfigError(f"--slice {request.slice!r}: write COLUMN=VALUE, such as 'day={{{{ ds }}}}'.")
    if any(place.startswith(_TABLE) for place in request.inputs.values()) or tables:
        notes = (
            []
            if request.instance is not None
            else ["Tables are those of the configuration's default instance; --instance names another one."]
        )
        if tables and request.slice is None and not any("{{" in place for place in tables):
            notes.append("Each run replaces all rows of its tables; --slice 'day={{ ds }}' keeps those of other days.")
        return notes
    return []


def _text(request: ScoringRequest, dag_id: str) -> str:
    project = (request.project or Path.cwd()).resolve()
    bundle = _from(project, request.bundle)
    dag: dict[str, Any] = {"dag_id": dag_id, "schedule": schedule_of(request.schedule, request.on_assets)}
    if request.start_date is not None:
        dag["start_date"] = moment_of(request.start_date)
    dag |= {
        "catchup": False,
        "max_active_runs": 1,
        "tags": list(dict.fromkeys(["pipedag", "scoring", *request.tags])),
        "doc_md": f"The production flow in `{bundle}`, run on its inputs. A run that is repeated replaces its own outputs.",
    }
    score: dict[str, Any] = {
        "task_id": "score",
        "bundle": bundle,
        "project": Path(os.path.relpath(project, request.folder.resolve())).as_posix(),
        "inputs": dict(request.inputs),
        "outputs": dict(request.outputs),
        "slice": request.slice,
        "instance": request.instance,
        "config": None if request.config is None else _from(project, request.config),
        "python": request.python,
        "command": request.command,
        "connections": dict(request.connections),
        "trust_pickle": request.trust_pickle,
        # What has started the run is what is read.
        "inlets": [Code(asset(uri, 2)) for uri in request.on_assets],
        "outlets": [Code(asset(scores_uri(dag_id, name), 2)) for name in request.outputs],
    }
    score = {key: value for key, value in score.items() if value or key == "inputs"}
    title = f"The bundle `{bundle}`, scored by an Airflow DAG. Generated: change the command, not this file."
    header = [f"Made by: pipedag-core {version('pipedag-core')}", f"Command: pipedag {shlex.join(request.words)}"]
    declared = [f"with {render_call('DAG', dag)}:", f"    {render_call('PipedagScoreOperator', score, 1)}"]
    first = ["import datetime", ""] if any("datetime." in line for line in declared) else []
    imports = ["from airflow.sdk import DAG, Asset", "from pipedag_airflow.scoring import PipedagScoreOperator", ""]
    return "\n".join([*head(title, header), *first, *imports, *declared]) + "\n"


def _from(project: Path, path: Path) -> str:
    """Return a path as it is from the project's folder; an absolute one stays."""
    return path.as_posix() if path.is_absolute() else Path(os.path.relpath(path.resolve(), project)).as_posix()
