"""What an operator does when it is its turn: in this process, or by a command in another interpreter or container."""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, final

from airflow.sdk import timezone
from airflow.sdk.exceptions import AirflowException, AirflowFailException, AirflowRescheduleException, AirflowSkipException

from pipedag_airflow.command import MISUSE, Command, first_words, project_of, uri_of
from pipedag_airflow.names import run_id_of, split_asset_uri
from pipedag_airflow.operators import MODE, STAGES, seconds_of
from pipedag_core import errors
from pipedag_core.config.load import find_file

if TYPE_CHECKING:
    from pipedag_airflow.operators import PipedagStepOperator

log = logging.getLogger(__name__)

#: Exit code of `pipedag step` where another run writes the stage.
_WAITING: Final = 75
#: Names of tables that XCom carries.
_NAMES: Final = 50


@final
class Worker:
    """One try of one task.

    Args:
        operator: Whose; its templates are rendered.
        context: Airflow's context of the try.
    """

    def __init__(self, operator: PipedagStepOperator, context: Any) -> None:
        self._operator = operator
        self._context = context
        self._command: Command | None = None
        params = context.get("params") or {}
        self._mode = str(params[MODE]) if params.get(MODE) else None
        self._stages = [str(stage) for stage in params.get(STAGES) or ()]
        ti = context["ti"]
        self.run_id = run_id_of(operator.deployment or _deployment(), ti.dag_id, ti.run_id, operator.flow, operator.instance)
        self.note = f"airflow dag {ti.dag_id}, run {ti.run_id}"
        self.external_id = f"{ti.dag_id}/{ti.run_id}"

    # --- the try

    def work(self) -> dict[str, Any]:
        """Carry out the step.

        Returns:
            The report, small enough for XCom.

        Raises:
            AirflowRescheduleException: Another run writes the stage.
            AirflowSkipException: The stage was not chosen for this run.
            AirflowFailException: Trying again cannot help.
            Exception: It failed; what the task raised, where it ran in this process.
        """
        return self.work_with(lambda: self._carry_out(self._operator.step))

    def work_with(self, carry_out: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        """Do what comes before and after a step whose report some function gives; as `work`."""
        self._skip_what_was_not_chosen()
        report = carry_out()
        if not report:
            return {"step": self._operator.step, "run_id": self.run_id}
        if report["outcome"] == "waiting":
            self._wait(report["reason"])
        if report["outcome"] == "failed":
            self._give_up_at_last()
            self._fail(report)
        self._tell(report)
        self._send_events(report)
        return _small(report, self.run_id)

    def stop(self) -> None:
        """End the command that is at work, with all its children."""
        if self._command is not None:
            self._command.stop()

    def command(self, step: str | None = None, *, report: str | None = None) -> list[str]:
        """Return the words of the command that carries out a step.

        Args:
            step: Another one than the operator's.
            report: File that the report is written to, beside standard output.
        """
        operator = self._operator
        digest = [] if operator.allow_drift or not operator.digest else ["--digest", operator.digest]
        return [
            *first_words(operator.command, operator.python),
            "step",
            operator.flow,
            step or operator.step,
            "--run-id",
            self.run_id,
            *_options_of(operator),
            *digest,
            *(word for stage in self._stages for word in ("--stage", stage)),
            *(["--mode", self._mode] if self._mode else []),
            *(["--report", report] if report else []),
            "--note",
            self.note,
            "--external-id",
            self.external_id,
        ]

    def variables(self) -> dict[str, str]:
        """Return the environment variables of the work, those with URIs of connections included."""
        found = {str(key): str(value) for key, value in (self._operator.environment or {}).items()}
        for variable, connection in (self._operator.connections or {}).items():
            found[variable] = uri_of(connection)
        return found

    # --- inside

    def _skip_what_was_not_chosen(self) -> None:
        if not self._stages:
            return
        kind, _, rest = self._operator.step.partition(":")
        if kind not in ("open", "commit", "close", "stage", "task"):
            return
        stage = rest.partition(".")[0] if kind == "task" else rest
        units = _unit_members(self._operator)
        if not set(self._stages) & (units.get(stage) or {stage}):
            raise AirflowSkipException(f"Stage {stage!r} was not chosen for this run (parameter {STAGES!r}).")

    def _carry_out(self, step: str) -> dict[str, Any]:
        operator = self._operator
        with _environment(self.variables()):
            if operator.python or operator.command:
                return self._by_command(step)
            return self._in_process(step)

    def _in_process(self, step: str) -> dict[str, Any]:
        from pipedag_core import PipedagConfig
        from pipedag_core.runner import execute_reference

        operator = self._operator
        project = project_of(operator)
        if project is not None and str(project) not in sys.path:
            sys.path.insert(0, str(project))
        try:
            report = execute_reference(
                _reference_in(operator.flow, project),
                step,
                run_id=self.run_id,
                instance=operator.instance,
                stages=self._stages,
                digest="" if operator.allow_drift else operator.digest or "",
                known_steps=[] if operator.allow_drift else known_steps(operator),
                config=_configuration(PipedagConfig, operator.config, project),
                cache_validation_mode=self._mode,
                note=self.note,
                external_id=self.external_id,
            )
        except (errors.ConfigError, errors.FlowError) as error:
            raise AirflowFailException(str(error)) from error
        return {**report.to_dict(), "error": report.error}

    def _by_command(self, step: str) -> dict[str, Any]:
        command = self._command = Command(self.command(step), project_of(self._operator), {})
        command.run()
        report = command.report()
        if command.code == _WAITING and report is not None:
            return report
        if command.code == MISUSE:
            raise AirflowFailException(command.told() + self._drift())
        if report is None:
            raise AirflowException(command.told())
        if command.code != 0 and report["outcome"] != "finished":
            report["message"] = report.get("message") or command.told()
            report["outcome"] = "failed"
        return report

    def _drift(self) -> str:
        """Say, after a refusal, which steps are new and which are gone, if that was the reason."""
        operator = self._operator
        if operator.allow_drift or not operator.digest:
            return ""
        words = [*first_words(operator.command, operator.python), "plan", operator.flow, "--json", *_options_of(operator)]
        with suppress(OSError, ValueError, subprocess.SubprocessError, KeyError, TypeError):
            done = subprocess.run(words, cwd=project_of(operator), capture_output=True, text=True, timeout=120, check=False)  # noqa: S603 -- as above
            found = json.loads(done.stdout)
            now, known = [step["id"] for step in found["steps"]], known_steps(operator)
            if found["digest"] == operator.digest:
                return ""
            new, gone = [id for id in now if id not in set(known)], [id for id in known if id not in set(now)]
            return f"\nNew in the code: {', '.join(new) or 'nothing'}. Gone from it: {', '.join(gone) or 'nothing'}. {REGENERATE}"
        return ""

    def _wait(self, reason: str) -> None:
        interval = seconds_of(self._operator.wait_interval)
        now = timezone.utcnow()
        first = self._context["ti"].get_first_reschedule_date(self._context)
        waited = (now - first).total_seconds() if first is not None else 0.0
        if waited > seconds_of(self._operator.wait_timeout):
            raise AirflowFailException(f"Waited {waited:.0f} s, longer than wait_timeout allows: {reason}.")
        log.info("Waiting: %s. The next try is in %.0f s; the slot is free until then.", reason, interval)
        raise AirflowRescheduleException(now + timedelta(seconds=interval))

    def _give_up_at_last(self) -> None:
        """After the last try of a whole stage, give the stage back: no closing follows that would."""
        kind, _, stage = self._operator.step.partition(":")
        ti = self._context["ti"]
        if kind == "stage" and (ti.max_tries is None or ti.try_number > ti.max_tries):
            try:
                self._carry_out(f"close:{stage}")
            except Exception as error:  # noqa: BLE001 -- the end of the run gives everything back; this must not hide why the stage failed
                log.warning("Stage %s could not be given back: %s", stage, error)

    def _fail(self, report: Mapping[str, Any]) -> None:
        kind = getattr(errors, str(report.get("reason")), None)
        if isinstance(kind, type) and issubclass(kind, (errors.ConfigError, errors.FlowError)):
            raise AirflowFailException(report["message"]) from report.get("error")
        if report.get("error") is not None:
            raise report["error"]
        raise AirflowException(f"{report['step']} failed: {report['message'] or report['reason']}")

    def _tell(self, report: Mapping[str, Any]) -> None:
        rows = "" if report.get("rows") is None else f", {report['rows']:,} rows"
        log.info("%s: %s (%s%s, %.3f s), run %s", report["step"], report["outcome"], report["reason"], rows, report["seconds"], self.run_id)
        for item in report.get("given") or ():
            if item.get("query") and report["step"].startswith("task:"):
                log.info("%s.%s is\n%s", item["stage"], item["name"], item["query"])

    def _send_events(self, report: Mapping[str, Any]) -> None:
        """Fill the events of the Assets that the step has made visible; leave out those that did not change, if that is wanted."""
        operator = self._operator
        outlets = list(operator.outlets or ())
        if not outlets:
            return
        given = [item for item in report.get("given") or () if item.get("changed") is not None]
        sent: list[Any] = []
        for outlet in outlets:
            place = split_asset_uri(getattr(outlet, "uri", "") or "")
            mine = (
                [] if place is None else [item for item in given if item["stage"] == place[2] and place[3] in (item["name"], item["task"])]
            )
            exact = [item for item in mine if place is not None and item["name"] == place[3]] or mine
            if place is None or not exact:
                if place is None or operator.events != "changed":
                    sent.append(outlet)
                continue
            if operator.events == "changed" and not any(item["changed"] for item in exact):
                continue
            rows = [item["rows"] for item in exact if item["rows"] is not None]
            self._context["outlet_events"][outlet].extra = {
                "rows": sum(rows) if rows else None,
                "identity": exact[0]["identity"] if len(exact) == 1 else {item["name"]: item["identity"] for item in exact},
                "changed": any(item["changed"] for item in exact),
                "generation": exact[0]["generation"],
                "run_id": self.run_id,
            }
            sent.append(outlet)
        # Airflow sends an event for each outlet that the task has when it has ended.
        operator.outlets = sent


REGENERATE: Final = "Generate the DAG file again, with the command in its header; or set allow_drift to carry out what the code says now."


def _options_of(operator: PipedagStepOperator) -> list[str]:
    return [
        *(["--instance", operator.instance] if operator.instance else []),
        *(["--config", operator.config] if operator.config else []),
    ]


def known_steps(operator: PipedagStepOperator) -> list[str]:
    """Return the steps of the plan that a DAG was made from, as far as its operators are steps."""
    dag = operator.dag
    steps = [getattr(task, "step", "") for task in dag.tasks if getattr(task, "flow", None) == operator.flow]
    return (
        [step for step in steps if step.startswith(("open:", "task:", "commit:")) or step == "finish"]
        if any(step.startswith("task:") for step in steps)
        else []
    )


def _unit_members(operator: PipedagStepOperator) -> dict[str, set[str]]:
    """Return, per stage, all stages of its unit: those whose operators are in the same outermost group."""
    members: dict[str, set[str]] = {}
    for task in operator.dag.tasks:
        kind, _, rest = str(getattr(task, "step", "")).partition(":")
        if kind in ("task", "open"):
            stage = rest.partition(".")[0] if kind == "task" else rest
            members.setdefault(task.task_id.partition(".")[0], set()).add(stage)
    return {stage: stages for stages in members.values() for stage in stages}


def _small(report: Mapping[str, Any], run_id: str) -> dict[str, Any]:
    names = list(report.get("tables") or ())
    found = {key: report.get(key) for key in ("step", "outcome", "reason", "rows", "seconds")}
    given = [item for item in report.get("given") or () if item.get("changed") is not None]
    if given:
        found["changed"] = sum(bool(item["changed"]) for item in given)
    return {**found, "tables": names[:_NAMES], "run_id": run_id}


def _reference_in(reference: str, project: Path | None) -> str:
    """Return a reference to a file as one that does not depend on the working directory."""
    place, colon, name = reference.rpartition(":")
    if project is None or not place.endswith(".py") or Path(place).is_absolute():
        return reference
    return f"{project / place}{colon}{name}"


def _configuration(kind: Any, config: str | None, project: Path | None) -> Any:
    """Return the configuration that is named, else the project's, else None for the one that is found."""
    if config is not None:
        return kind((project or Path.cwd()) / config)
    if project is None:
        return None
    # As a command finds it that starts in the project's folder.
    found = find_file(project)
    return kind(found) if found is not None else kind({}, base_dir=project)


def _deployment() -> str:
    from airflow.sdk.configuration import conf

    return conf.get("pipedag", "deployment", fallback="") or conf.get("api", "base_url", fallback="") or "airflow"


@contextmanager
def _environment(variables: Mapping[str, str]) -> Iterator[None]:
    before = {name: os.environ.get(name) for name in variables}
    os.environ.update(variables)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
