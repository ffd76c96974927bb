"""`pipedag airflow generate` and `pipedag airflow generate-scoring`: DAG files for Airflow."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from pipedag_airflow.generate import Generated, Request, generate
from pipedag_airflow.generate_scoring import ScoringRequest, generate_scoring
from pipedag_airflow.layout import Granularity
from pipedag_core.errors import ConfigError

app = typer.Typer(no_args_is_help=True, help="DAG files for Airflow.")

Output = Annotated[Path, typer.Option("--output", "-o", metavar="FOLDER", help="Folder of the DAG file.")]
Check = Annotated[bool, typer.Option("--check", help="Write nothing; end with 1 if the file is missing or says something else.")]
DagId = Annotated[str | None, typer.Option("--dag-id", help="By default flow and instance. The file is named after it.")]
Schedule = Annotated[str | None, typer.Option("--schedule", help="A cron expression, or a preset such as @daily.")]
OnAsset = Annotated[
    list[str] | None,
    typer.Option(
        "--on-asset", metavar="URI", help="Run when this Asset has changed, x-pipedag://flow/instance/stage/table; may be repeated."
    ),
]
StartDate = Annotated[str | None, typer.Option("--start-date", metavar="DATE", help="Where a schedule begins.")]
Tags = Annotated[list[str] | None, typer.Option("--tag", help="A tag of the DAG; may be repeated.")]
Python = Annotated[str | None, typer.Option("--python", help="Interpreter with the flow's own dependencies; by default the worker's own.")]
Project = Annotated[
    Path | None,
    typer.Option("--project", help="Folder of the code and the configuration, by default this one. The file finds it relative to itself."),
]

Connections = Annotated[
    list[str] | None,
    typer.Option("--connection", metavar="VARIABLE=CONN_ID", help="Environment variable that is given the URI of an Airflow connection."),
]
Config = Annotated[Path | None, typer.Option("--config", "-c", help="Configuration; by default the pipedag.yaml that is found.")]


@app.callback()
def _group() -> None:
    """DAG files for Airflow."""


@app.command("generate")
def generate_command(
    flow: Annotated[str, typer.Argument(metavar="MODULE:FLOW", help="package.module:flow_or_factory, or path/file.py:flow_or_factory")],
    output: Output,
    instance: Annotated[str | None, typer.Option("--instance", "-i", help="Instance of the pipeline.")] = None,
    check: Check = False,
    dag_id: DagId = None,
    granularity: Annotated[Granularity, typer.Option("--granularity", help="What one operator carries out.")] = Granularity.TASK,
    schedule: Schedule = None,
    on_asset: OnAsset = None,
    start_date: StartDate = None,
    tag: Tags = None,
    python: Python = None,
    command: Annotated[
        str | None,
        typer.Option("--command", help="Instead of --python: what stands before `step ...`, such as 'docker run --rm image pipedag'."),
    ] = None,
    connection: Connections = None,
    project: Project = None,
    config: Config = None,
    learn: Annotated[
        str | None, typer.Option("--learn", metavar="INSTANCE", help="Take names of tables from what an instance has.")
    ] = None,
    executor: Annotated[
        str | None, typer.Option("--executor", help="Airflow's executor: refuse a store that its workers cannot reach.")
    ] = None,
    events: Annotated[
        str, typer.Option("--events", help="always, or changed: Asset events only for tables that a commit changed.")
    ] = "always",
    allow_drift: Annotated[
        bool, typer.Option("--allow-drift", help="Let steps run though the code is wired differently from the file by then.")
    ] = False,
    override: Annotated[
        str | None, typer.Option("--override", metavar="MODULE:FUNCTION", help="Function that changes the arguments of operators.")
    ] = None,
    max_active_runs: Annotated[int | None, typer.Option("--max-active-runs", min=1, help="Runs at the same time; by default 1.")] = None,
) -> None:
    """Write a flow as a DAG file, which imports nothing of the flow's project."""
    if events not in ("always", "changed"):
        raise ConfigError(f"--events is {events!r}, but must be always or changed.")
    if python and command:
        raise ConfigError("Give --python or --command, not both.")
    request = Request(
        flow=flow,
        folder=output,
        instance=instance,
        dag_id=dag_id,
        granularity=granularity,
        project=project,
        config=config,
        learn=learn,
        schedule=schedule,
        on_assets=on_asset or (),
        start_date=start_date,
        tags=tag or (),
        python=python,
        command=command,
        connections=dict(_pair(text) for text in connection or ()),
        executor=executor,
        events=events,
        allow_drift=allow_drift,
        override=override,
        max_active_runs=max_active_runs,
        words=_words(),
    )
    _finish(generate(request), check=check)


@app.command("generate-scoring")
def generate_scoring_command(
    bundle: Annotated[Path, typer.Argument(metavar="BUNDLE", help="Folder that `pipedag extract` writes; it need not be there yet.")],
    folder: Annotated[Path, typer.Option("--folder", "-o", metavar="FOLDER", help="Folder of the DAG file.")],
    output: Annotated[
        list[str],
        typer.Option(
            "--output",
            metavar="NAME=PLACE",
            help="Output and its file, such as predict='scores/{{ ds }}.parquet', or table:STAGE.TABLE of the instance; may be repeated.",
        ),
    ],
    input: Annotated[
        list[str] | None,
        typer.Option("--input", metavar="NAME=PLACE", help="Input and its file, or table:STAGE.TABLE of the instance; may be repeated."),
    ] = None,
    slice: Annotated[
        str | None,
        typer.Option("--slice", metavar="COLUMN=VALUE", help="The rows of a run in tables, such as 'day={{ ds }}'; others stay."),
    ] = None,
    instance: Annotated[str | None, typer.Option("--instance", "-i", help="Instance whose tables are read and written.")] = None,
    check: Check = False,
    dag_id: Annotated[str | None, typer.Option("--dag-id", help="By default the bundle's name and _scoring.")] = None,
    schedule: Schedule = None,
    on_asset: OnAsset = None,
    start_date: StartDate = None,
    tag: Tags = None,
    python: Annotated[
        str | None, typer.Option("--python", help="Interpreter with the bundle's requirements; by default the worker's own.")
    ] = None,
    command: Annotated[str | None, typer.Option("--command", help="Instead of --python: the words that stand for `pipedag`.")] = None,
    connection: Connections = None,
    project: Project = None,
    config: Config = None,
    trust_pickle: Annotated[bool, typer.Option("--trust-pickle", help="Read pickles in the bundle, which can run any code.")] = False,
) -> None:
    """Write a DAG file that scores with a bundle: from files and tables to files and tables. It imports nothing of the project."""
    request = ScoringRequest(
        bundle=bundle,
        folder=folder,
        inputs=dict(_place(text, "--input") for text in input or ()),
        outputs=dict(_place(text, "--output") for text in output),
        slice=slice,
        instance=instance,
        config=config,
        project=project,
        dag_id=dag_id,
        schedule=schedule,
        on_assets=on_asset or (),
        start_date=start_date,
        tags=tag or (),
        python=python,
        command=command,
        connections=dict(_pair(text) for text in connection or ()),
        trust_pickle=trust_pickle,
        words=_words(),
    )
    _finish(generate_scoring(request), check=check)


def _place(text: str, option: str) -> tuple[str, str]:
    name, equals, place = text.partition("=")
    if not equals or not name or not place:
        raise ConfigError(f"{option} {text!r}: write NAME=PLACE, such as clean.flights=flights.parquet.")
    return name, place


def _pair(text: str) -> tuple[str, str]:
    name, equals, value = text.partition("=")
    if not equals or not name.isidentifier() or not value:
        raise ConfigError(f"--connection {text!r}: write VARIABLE=CONN_ID, such as STORE_URL=warehouse.")
    return name, value


def _words() -> list[str]:
    """Return the words of this command as they were given, but for what only says how it was called."""
    words = sys.argv[1:]
    start = words.index("airflow") if "airflow" in words else 0
    return [word for word in words[start:] if word != "--check"]


def _finish(made: Generated, *, check: bool) -> None:
    """Write a file, or say whether it is fresh."""
    for note in made.notes:
        typer.echo(f"note: {note}", err=True)
    if check:
        if made.is_fresh:
            typer.echo(f"{made.path} is up to date")
            return
        state = "says something else than the flow and the command do now" if made.path.is_file() else "is not there"
        typer.echo(f"{made.path} {state}. Run the same without --check.", err=True)
        raise typer.Exit(1)
    typer.echo(f"{made.path} {'written' if made.write() else 'is up to date'}")
