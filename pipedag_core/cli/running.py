"""`pipedag run` and `pipedag step`."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Sequence
from contextlib import redirect_stdout
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, NoReturn

import typer

from pipedag_core.cache.modes import CacheValidationMode
from pipedag_core.cli.logs import is_detailed, steps_told_once
from pipedag_core.cli.parameters import ConfigFile, Instance, Mode, PerUser, Reference, configuration, flow_and_settings
from pipedag_core.cli.tracebacks import trimmed
from pipedag_core.config.keys import parse_mode
from pipedag_core.errors import PlanMismatch
from pipedag_core.ports.events import Event, Outcome, StepEnded, StepReport

if TYPE_CHECKING:
    from pipedag_core.plan.model import Plan

#: Exit code of a step that found another run at work: "temporary failure, try again" in the tradition of sysexits.
WAITING = 75
#: Exit code after Ctrl-C, as shells count it: 128 and the number of the signal.
INTERRUPTED = 130


class EngineName(StrEnum):
    """Engines that need nothing but this package."""

    SEQUENTIAL = "sequential"
    THREADS = "threads"


Stages = Annotated[list[str] | None, typer.Option("--stage", "-s", help="Run and commit this stage only; may be repeated.")]
Tasks = Annotated[
    list[str] | None, typer.Option("--task", "-t", metavar="STAGE.TASK", help="Run this task only, and commit nothing; may be repeated.")
]
FailFast = Annotated[
    bool | None, typer.Option("--fail-fast/--no-fail-fast", help="Start nothing more after the first failure.", show_default=False)
]

Engine = Annotated[
    EngineName | None, typer.Option("--engine", help="Carry out steps one after another, or in threads.", show_default=False)
]
TakeOver = Annotated[
    bool, typer.Option("--take-over", help="Do not wait for another run that writes a stage: take the stage away from it, and let it fail.")
]


def run(
    reference: Reference,
    instance: Instance = None,
    stage: Stages = None,
    task: Tasks = None,
    mode: Mode = None,
    config: ConfigFile = None,
    fail_fast: FailFast = None,
    engine: Engine = None,
    per_user: PerUser = False,
    take_over: TakeOver = False,
) -> None:
    """Run a flow, or stages or tasks of it."""
    from pipedag_core.cli.progress import choose_progress, say, summary
    from pipedag_core.runner import run_flow

    if stage and task:
        raise typer.BadParameter("name stages or tasks, not both: stages are committed, tasks are not", param_hint="--task")
    for name in task or ():
        if "." not in name:
            raise typer.BadParameter(f"{name!r} does not say in which stage the task is: write STAGE.{name}", param_hint="--task")
    chosen = _mode(mode)
    flow, context = flow_and_settings(reference, config, instance, per_user)
    components = [flow.get_stage(name) for name in stage or ()] or (task or [])
    started = time.monotonic()
    raised: Exception | None = None
    ended: KeyboardInterrupt | SystemExit | None = None
    display = choose_progress()
    with display, steps_told_once():
        try:
            run_flow(
                flow,
                *components,
                config=context,
                fail_fast=fail_fast,
                cache_validation_mode=chosen,
                orchestration_engine=None if engine is None else engine.value,
                take_over=take_over,
                observers=[display],
            )
        except Exception as error:  # noqa: BLE001 -- raised again below, unless a report holds it
            raised = error
        except (KeyboardInterrupt, SystemExit) as error:
            ended = error
    if ended is not None:
        _tell_end(ended, display.recorder.at_work)
    reports = display.recorder.reports
    if raised is not None and not any(report.error is raised for report in reports):
        raise raised
    for report in reports:
        if report.outcome is Outcome.FAILED:
            _show_failure(report)
    say(summary(flow.name, context.instance_name, display.recorder.run_id, reports, time.monotonic() - started))
    if any(not report.outcome.is_good for report in reports):
        raise typer.Exit(1)


def step(
    plan: Annotated[
        str,
        typer.Argument(metavar="PLAN.json|MODULE:FLOW", help="Plan, as `pipedag plan --json` writes it; or a flow, which is planned anew."),
    ],
    step: Annotated[
        str,
        typer.Argument(
            metavar="STEP", help="Id of the step, such as task:features.joined; or several: stage:features, flow; or close:features."
        ),
    ],
    run_id: Annotated[str, typer.Option("--run-id", help="Same for all steps of one run.")],
    mode: Mode = None,
    config: ConfigFile = None,
    instance: Instance = None,
    stage: Annotated[
        list[str] | None, typer.Option("--stage", "-s", help="With a flow: the run is made of this stage only; may be repeated.")
    ] = None,
    digest: Annotated[
        str, typer.Option("--digest", help="With a flow: refuse it if it is wired differently from the plan with this digest.")
    ] = "",
    note: Annotated[str, typer.Option("--note", help="Who is at work, for those who have to wait.")] = "",
    report_to: Annotated[
        Path | None, typer.Option("--report", metavar="FILE", help="Write the report to a file as well, whatever the step came to.")
    ] = None,
    external_id: Annotated[str, typer.Option("--external-id", help="The orchestrator's own id of the run, to be kept with it.")] = "",
    take_over: TakeOver = False,
) -> None:
    """Carry out one step of a plan; print its report as one line of JSON.

    Ends with 0 when the step went well, 1 when it failed (`finish`: when the run did), 75 when another run writes the stage: call it again
    later. Several steps in one (`stage:features`, `flow`) give a line each, and one more for all of them; `close:features` gives back a stage that
    will not be committed.
    """
    from pipedag_core.runner import execute, execute_reference

    wanted = None if _is_reference(plan) else _read_plan(Path(plan))
    if wanted is not None and (instance is not None or stage or digest):
        raise typer.BadParameter("a plan says itself for which instance and stages it is; leave --instance, --stage and --digest out")
    told = _Told(step)
    # What tasks print goes to standard error, so that whoever calls this can read the report.
    with redirect_stdout(sys.stderr), steps_told_once():
        try:
            if wanted is not None:
                report = execute(
                    wanted,
                    step,
                    run_id=run_id,
                    config=configuration(config),
                    observers=[told],
                    cache_validation_mode=_mode(mode),
                    note=note,
                    external_id=external_id,
                    take_over=take_over,
                )
            else:
                report = execute_reference(
                    plan,
                    step,
                    run_id=run_id,
                    instance=instance,
                    stages=stage or (),
                    digest=digest,
                    config=configuration(config),
                    observers=[told],
                    cache_validation_mode=_mode(mode),
                    note=note,
                    external_id=external_id,
                    take_over=take_over,
                )
        except (KeyboardInterrupt, SystemExit) as error:
            _tell_end(error, [step])
    for part in told.reports:
        typer.echo(json.dumps(part.to_dict(), ensure_ascii=False))
    if report.outcome is Outcome.FAILED:
        _show_failure(report)
    text = json.dumps(report.to_dict(), ensure_ascii=False)
    typer.echo(text)
    if report_to is not None:
        report_to.parent.mkdir(parents=True, exist_ok=True)
        report_to.write_text(f"{text}\n", encoding="utf-8")
    if not report.outcome.is_good:
        raise typer.Exit(WAITING if report.outcome is Outcome.WAITING else 1)
    # The step itself went well; whoever watches exit codes wants to know about the run.
    if report.outcome is Outcome.FINISHED and report.reason != "succeeded":
        raise typer.Exit(1)


class _Told:
    """Collects the reports of steps that are part of what was asked for."""

    def __init__(self, step: str) -> None:
        self._step = step
        self.reports: list[StepReport] = []

    def on_event(self, event: Event) -> None:
        if isinstance(event, StepEnded) and event.report.step != self._step:
            self.reports.append(event.report)


def _is_reference(plan: str) -> bool:
    return not plan.endswith(".json") and not Path(plan).is_file()


def _read_plan(path: Path) -> Plan:
    from pipedag_core.plan.model import Plan

    try:
        return Plan.from_json(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise typer.BadParameter(f"there is no file {str(path)!r}", param_hint="PLAN.json") from None
    except (PlanMismatch, OSError, UnicodeDecodeError) as error:
        cause = error.__cause__
        where = f", line {cause.lineno} column {cause.colno}: {cause.msg}." if isinstance(cause, json.JSONDecodeError) else ""
        raise PlanMismatch(f"{path}{where or ':'} {error}", path=str(path)) from error


def _mode(text: str | None) -> CacheValidationMode | None:
    if text is None:
        return None
    try:
        return parse_mode(text)
    except ValueError:
        known = ", ".join(mode.value for mode in CacheValidationMode)
        raise typer.BadParameter(f"{text!r} is not one of {known}", param_hint="--mode") from None


def _tell_end(error: KeyboardInterrupt | SystemExit, at_work: Sequence[str]) -> NoReturn:
    """Say what a run, or a step, was at when Ctrl-C or `sys.exit` ended it, and end the command."""
    names = ", ".join(step.removeprefix("task:") for step in at_work if step.startswith("task:"))
    if isinstance(error, KeyboardInterrupt):
        typer.echo(f"interrupted{f' in {names}' if names else ''}; what is finished is kept", err=True)
        raise typer.Exit(INTERRUPTED) from error
    typer.echo(trimmed(error, everything=is_detailed()), err=True)
    typer.echo(f"sys.exit was called{f' while {names} was at work' if names else ''}; what is finished is kept.", err=True)
    raise typer.Exit(1) from error


def _show_failure(report: StepReport) -> None:
    from pipedag_core.cli.progress import name_of

    told = trimmed(report.error, everything=is_detailed()) if report.error is not None else report.message
    typer.echo(f"\n{name_of(report)} failed:\n{told}\n", err=True)
