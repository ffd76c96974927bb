"""The operator of scoring DAGs: a bundle, run from files and tables to files and tables."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Collection, Mapping, Sequence
from datetime import datetime
from typing import TYPE_CHECKING, Any, ClassVar

from airflow.sdk import BaseOperator

if TYPE_CHECKING:
    from airflow.sdk import Context

    from pipedag_airflow.command import Command


class PipedagScoreOperator(BaseOperator):
    """Runs a production flow: `pipedag score` in a process of its own.

    Each output goes to a file, which is replaced at once after all outputs have been computed, or into a table of the instance. Name the file after the
    day (`scores/{{ ds }}.parquet`), or give the day's rows in a table a column of their own (`slice="day={{ ds }}"`): a run that is tried again, or
    cleared, then replaces what it has written, and nothing else. A run without a logical date, such as one that an Asset or a person has
    started, counts for the moment at which it was due, so that `{{ ds }}`, `{{ ts }}` and `{{ logical_date }}` are there in every run.

    Args:
        bundle: Folder of the bundle. This and other relative paths begin at `project`.
        inputs: Name of an input -> its file (Parquet, CSV, Arrow), or `table:STAGE.TABLE` of the instance.
        outputs: Name of an output -> its file, or `table:STAGE.TABLE` of the instance; all tables are in one stage, which changes at once.
        slice: `COLUMN=VALUE`: tables get this column, and rows with another value in it stay.
        instance: Instance whose tables are read and written.
        config: The configuration, if it is not to be looked for.
        project: Folder in which the command runs, and from which Python imports first. A relative one begins at the folder of the DAG file.
        python: Interpreter with the bundle's requirements; by default the worker's own.
        command: Instead of it: the words that stand for `pipedag`.
        environment: Environment variables.
        connections: Environment variable -> id of an Airflow connection, whose URI it is given.
        trust_pickle: Read pickles in the bundle, which can run any code.
    """

    template_fields: Collection[str] = ("bundle", "inputs", "outputs", "slice", "instance", "config", "python", "command", "environment")
    template_fields_renderers: ClassVar[dict[str, str]] = {"inputs": "json", "outputs": "json", "environment": "json"}
    ui_color = "#efe6f5"

    def __init__(
        self,
        *,
        bundle: str,
        inputs: Mapping[str, str],
        outputs: Mapping[str, str],
        slice: str | None = None,
        instance: str | None = None,
        config: str | None = None,
        project: str | None = None,
        python: str | None = None,
        command: str | Sequence[str] | None = None,
        environment: Mapping[str, str] | None = None,
        connections: Mapping[str, str] | None = None,
        trust_pickle: bool = False,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.bundle = bundle
        self.inputs = inputs
        self.outputs = outputs
        self.slice = slice
        self.instance = instance
        self.config = config
        self.project = project
        self.python = python
        self.command = command
        self.environment = environment
        self.connections = connections
        self.trust_pickle = trust_pickle
        self._command: Command | None = None

    def render_template_fields(self, context: Context, jinja_env: Any = None) -> None:
        """Fill the templates in; the moment at which a run was due stands for a logical date that it does not have."""
        super().render_template_fields(_dated(context), jinja_env)  # pyright: ignore[reportArgumentType] -- a context, with three keys more

    def words(self) -> list[str]:
        """Return the command."""
        from pipedag_airflow.command import first_words

        return [
            *first_words(self.command, self.python or sys.executable),
            "score",
            self.bundle,
            *(word for name, place in self.inputs.items() for word in ("--input", f"{name}={place}")),
            *(word for name, place in self.outputs.items() for word in ("--output", f"{name}={place}")),
            *(["--slice", self.slice] if self.slice else []),
            *(["--instance", self.instance] if self.instance else []),
            *(["--config", self.config] if self.config else []),
            *(["--trust-pickle"] if self.trust_pickle else []),
        ]

    def execute(self, context: Context) -> dict[str, Any]:
        """Score; return the rows of each output and where they are."""
        from airflow.sdk.exceptions import AirflowException, AirflowFailException

        from pipedag_airflow.command import MISUSE, Command, project_of, uri_of

        variables = {str(key): str(value) for key, value in (self.environment or {}).items()}
        variables |= {variable: uri_of(connection) for variable, connection in (self.connections or {}).items()}
        command = self._command = Command(self.words(), project_of(self), variables)
        command.run()
        if command.code == MISUSE:
            raise AirflowFailException(command.told())
        report = command.report()
        if command.code != 0 or report is None:
            raise AirflowException(command.told())
        rows = dict(report["outputs"])
        self.log.info("%s: %s", shlex.quote(self.bundle), ", ".join(f"{name}: {count:,} rows" for name, count in rows.items()))
        self._tell_events(context, rows)
        return {"outputs": rows, "places": {name: str(place) for name, place in self.outputs.items()}}

    def on_kill(self) -> None:
        """End the command."""
        if self._command is not None:
            self._command.stop()

    def _tell_events(self, context: Context, rows: Mapping[str, int]) -> None:
        from pipedag_airflow.names import split_asset_uri

        for outlet in self.outlets or ():
            place = split_asset_uri(getattr(outlet, "uri", "") or "")
            if place is not None and place[3] in rows:
                events: Any = context.get("outlet_events")
                events[outlet].extra = {"rows": rows[place[3]], "place": str(self.outputs[place[3]])}


def _dated(context: Context) -> Mapping[str, Any]:
    """Return a context that has a logical date, and what Airflow derives from it."""
    if context.get("logical_date") is not None:
        return context
    run: Any = context.get("dag_run")
    due: datetime = run.run_after
    day = due.strftime("%Y-%m-%d")
    names = {
        "logical_date": due,
        "ds": day,
        "ds_nodash": day.replace("-", ""),
        "ts": due.isoformat(),
        "ts_nodash": due.strftime("%Y%m%dT%H%M%S"),
    }
    return {**context, **names}
