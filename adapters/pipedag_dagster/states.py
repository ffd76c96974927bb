"""Where definitions get a flow's plan from: a file, else a process of its own that imports the flow, so that this one never does.

Run as a program it is that process: `python -m pipedag_dagster.states MODULE:FLOW ...` writes the state as JSON to a file.
"""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, Final

from pipedag_core import ConfigContext, PipedagConfig, Plan
from pipedag_core.errors import ConfigError, PlanMismatch
from pipedag_core.naming import file_segment
from pipedag_core.ports.data import StoredTable
from pipedag_dagster.props import FlowState, TableFacts

#: Folders that hold what others wrote.
_FOREIGN: Final = ("site-packages", "dist-packages")


def to_json(state: FlowState) -> str:
    """Return the state as JSON text: same state, same text."""
    raw = {
        "plan": json.loads(state.plan.to_json()),
        "facts": {name: asdict(facts) for name, facts in sorted(state.facts.items())},
        "reads": {task: list(tables) for task, tables in sorted(state.reads.items())},
        "sources": dict(sorted(state.sources.items())),
    }
    return json.dumps(raw, indent=1, ensure_ascii=False) + "\n"


def from_json(text: str, where: str) -> FlowState:
    """Return the state that `to_json` wrote, or that of a plan as `pipedag plan --json` writes it.

    Raises:
        PlanMismatch: It is neither, or of another format.
    """
    try:
        raw: Any = json.loads(text)
        if "plan" not in raw:
            return FlowState(Plan.from_parsed(raw))
        return FlowState(
            Plan.from_parsed(raw["plan"]),
            {
                name: TableFacts(facts["kind"], tuple(facts["primary_key"]), tuple(facts["non_nullable"]))
                for name, facts in raw["facts"].items()
            },
            {task: tuple(tables) for task, tables in raw["reads"].items()},
            raw["sources"],
        )
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise PlanMismatch(
            f"{where} is not a plan ({error}). Make one with `pipedag plan MODULE:FLOW --json`, or remove it.", path=where
        ) from error
    except PlanMismatch as error:
        raise PlanMismatch(f"{where}: {error}", path=where) from error


def load_state(
    reference: str, config: PipedagConfig | None, context: ConfigContext, plan_file: str | Path | None, learn: str | None = None
) -> FlowState:
    """Return the state of a flow that is named by its import reference.

    Args:
        reference: `package.module:flow_or_factory`, or `path/file.py:flow_or_factory`.
        config: The configuration, as it was given; None for the one that is found.
        context: The settings of the instance.
        plan_file: The plan, as `pipedag plan --json` writes it, or a state that was written here. None: a state that is kept below `.pipedag/`
            beside the configuration, and made anew whenever a source file of the flow changed.
        learn: Name of an instance whose stored tables teach names and declared options that the plan cannot know.

    Raises:
        PlanMismatch: The file is not a plan, or one of another flow or instance, or the flow is wired differently since.
        ConfigError: The file is not there, or the flow cannot be imported.
    """
    path = Path(plan_file) if plan_file is not None else _kept(reference, context, learn)
    if plan_file is not None and not path.is_file():
        raise ConfigError(
            f"There is no plan {str(path)!r}. Make it: `pipedag plan {reference} --instance {context.instance_name} --json > {path}`.",
            path=str(path),
        )
    known = from_json(path.read_text(encoding="utf-8"), str(path)) if path.is_file() else None
    if known is not None:
        _refuse_foreign(known.plan, reference, context, str(path)) if plan_file is not None else None
        if not changed_sources(reference, known.sources):
            return known
    made = make_state(reference, config, context, learn)
    if known is not None and plan_file is not None and made.plan.digest != known.plan.digest:
        then, now = ({task.id for task in plan.tasks} for plan in (known.plan, made.plan))
        parts = [f"{what}: {', '.join(sorted(some))}" for what, some in (("new", now - then), ("gone", then - now)) if some]
        raise PlanMismatch(
            f"The flow {reference} is wired differently from its plan {str(path)!r} ({'; '.join(parts) or 'the same tasks, connected otherwise'}). "
            f"Make it again: `pipedag plan {reference} --instance {context.instance_name} --json > {path}`.",
            path=str(path),
            new=tuple(sorted(now - then)),
            gone=tuple(sorted(then - now)),
        )
    if plan_file is None:
        write_state(path, to_json(made))
    return made


def _kept(reference: str, context: ConfigContext, learn: str | None) -> Path:
    taught = f" from {learn}" if learn else ""
    return context.base_dir / ".pipedag" / "plans" / f"{file_segment(f'{reference} {context.instance_id}{taught}')}.json"


def write_state(path: Path, text: str) -> None:
    """Write a state at once, so that a process that reads it meanwhile sees all of the old or of the new one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(f"{path.name}.{os.getpid()}")
    beside.write_text(text, encoding="utf-8")
    beside.replace(path)


def _refuse_foreign(plan: Plan, reference: str, context: ConfigContext, where: str) -> None:
    for what, found, wanted in (
        ("flow", plan.source, reference),
        ("instance", plan.instance, context.instance_name),
    ):
        if found is not None and found != wanted:
            raise PlanMismatch(
                f"The plan {where!r} is for {what} {found!r}, but the definitions are asked for with {wanted!r}. Make one for it: "
                f"`pipedag plan {reference} --instance {context.instance_name} --json > {where}`.",
                path=where,
            )


# --- whether it is still true -------------------------------------------------------------------------------------------------------


def source_root(reference: str) -> Path | None:
    """Return the folder that a flow's code is imported from, without importing anything; None if it cannot be told."""
    place = reference.rpartition(":")[0]
    if place.endswith(".py") or "/" in place:
        root = Path(place).expanduser().resolve().parent
        while (root / "__init__.py").is_file() and root.name.isidentifier():
            root = root.parent
        return root
    top = place.partition(".")[0]
    for entry in dict.fromkeys([os.getcwd(), *sys.path]):  # noqa: PTH109 -- as import does it, without resolving links
        folder = Path(entry or ".")
        if (folder / top).is_dir() or (folder / f"{top}.py").is_file():
            return folder.resolve()
    return None


def changed_sources(reference: str, sources: Mapping[str, str]) -> list[str]:
    """Return which of the files have another content now; nothing where that cannot be told."""
    root = source_root(reference) if sources else None
    return [] if root is None else [name for name, known in sources.items() if _hash(root / name) != known]


def _hash(path: Path) -> str | None:
    try:
        return hashlib.sha256(path.read_bytes()).hexdigest()
    except OSError:
        return None


def _sources(reference: str) -> dict[str, str]:
    """Return the files of the project that the flow's import has loaded, with hashes."""
    root = source_root(reference)
    found: dict[str, str] = {}
    for module in list(sys.modules.values()):
        file = getattr(module, "__file__", None)
        if root is None or not isinstance(file, str) or not file.endswith(".py"):
            continue
        path = Path(file).resolve()
        if not path.is_relative_to(root) or any(part in _FOREIGN for part in path.relative_to(root).parts):
            continue
        if module.__name__.partition(".")[0] in ("pipedag_core", "pipedag_dagster"):
            continue
        known = _hash(path)
        if known is not None:
            found[path.relative_to(root).as_posix()] = known
    return found


# --- making it ----------------------------------------------------------------------------------------------------------------------


def make_state(reference: str, config: PipedagConfig | None, context: ConfigContext, learn: str | None = None) -> FlowState:
    """Make the state in a process of its own, which imports the flow; arguments as for `load_state`.

    Raises:
        ConfigError: That failed; the message ends with what the process said.
    """
    command = [sys.executable, "-m", "pipedag_dagster.states", reference, "--instance", context.instance_name]
    if config is not None and config.path is None:
        raise ConfigError(
            "Definitions of a flow that is named by its import reference need a configuration in a file, since another process makes the plan. "
            "Pass the path of a pipedag.yaml as config=, or a plan, or the flow itself."
        )
    if config is not None:
        command += ["--config", str(config.path)]
    if learn is not None:
        command += ["--learn", learn]
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(entry for entry in sys.path if entry)}
    done = subprocess.run(command, env=env, capture_output=True, text=True, check=False)  # noqa: S603 -- our own module
    if done.returncode:
        raise ConfigError(
            f"The flow {reference} could not be planned; `pipedag plan {reference}` shows why:\n{done.stderr.strip()[-2000:]}",
            reference=reference,
        )
    return from_json(done.stdout, f"what was made of {reference}")


def learned(plan: Plan, context: ConfigContext) -> FlowState:
    """Return a plan together with what an instance's current generations teach: names, declared options, which tables tasks really read.

    Raises:
        ConfigError: The instance has not run yet.
    """
    from pipedag_core.config.wire import has_catalog, open_catalog

    if not has_catalog(context):
        raise ConfigError(
            f"There is nothing to learn from instance {context.instance_name!r} of flow {plan.flow!r}: it has not run yet. Run it first.",
            instance=context.instance_name,
        )
    positions = {task.id: task.position for task in plan.tasks}
    outputs: dict[str, tuple[str, ...]] = {}
    facts: dict[str, TableFacts] = {}
    identities: dict[str, dict[str, str]] = {}
    read: dict[str, set[str]] = {}
    catalog = open_catalog(context, read_only=True)
    try:
        for stage in plan.stages:
            current = catalog.current(stage.name)
            if current is None:
                continue
            entries = catalog.entries(stage.name, current)
            for result in catalog.results(stage.name, current):
                id = f"{stage.name}.{result.task}"
                if positions.get(id) != result.position:
                    continue
                outputs[id] = tuple(result.entries)
                identities[id] = {f"{stage.name}.{name}": entries[name].identity for name in result.entries}
                read[id] = {value for part, value in result.parts.items() if part.startswith("input ")}
                for name in result.entries:
                    item = entries[name]
                    facts[f"{stage.name}.{name}"] = (
                        TableFacts("table", item.options.primary_key, _filled(item))
                        if isinstance(item, StoredTable)
                        else TableFacts("blob")
                    )
    finally:
        catalog.close()
    made = plan.with_outputs(outputs)
    return FlowState(made, facts, _reads(made, identities, read))


def _filled(table: StoredTable) -> tuple[str, ...]:
    """Return the columns that were declared to hold no nulls."""
    options = table.options
    declared = {*options.primary_key, *(options.non_nullable or ())}
    if options.nullable is not None and options.non_nullable is None:
        declared |= set(table.schema.names) - set(options.nullable)
    return tuple(name for name in table.schema.names if name in declared)


def _reads(plan: Plan, identities: Mapping[str, Mapping[str, str]], read: Mapping[str, set[str]]) -> dict[str, tuple[str, ...]]:
    """Return which tables tasks read, where every one of their inputs is found among what their upstream tasks hold today."""
    found: dict[str, tuple[str, ...]] = {}
    for task in plan.tasks:
        wanted = read.get(task.id)
        offered = {name: identity for other in task.upstream for name, identity in identities.get(other, {}).items()}
        if wanted and wanted <= set(offered.values()):
            found[task.id] = tuple(name for name, identity in offered.items() if identity in wanted)
    return found


def main(arguments: Sequence[str]) -> None:
    """Import a flow and print its state."""
    import argparse
    from contextlib import redirect_stdout
    from dataclasses import replace

    from pipedag_core.config.flows import find_flow

    parser = argparse.ArgumentParser(prog="python -m pipedag_dagster.states", description="Print what definitions of a flow are made of.")
    parser.add_argument("reference")
    parser.add_argument("--instance")
    parser.add_argument("--config", type=Path)
    parser.add_argument("--learn")
    given = parser.parse_args(arguments)
    config = PipedagConfig.default if given.config is None else PipedagConfig(given.config)
    # What the flow's modules print must not get into the JSON.
    with redirect_stdout(sys.stderr):
        flow, _, context = find_flow(given.reference, config, given.instance)
        plan = flow.plan(context.instance_name, given.reference)
        state = FlowState(plan) if given.learn is None else learned(plan, config.get(given.learn, flow.name))
        state = replace(state, sources=_sources(given.reference))
    sys.stdout.write(to_json(state))


if __name__ == "__main__":
    main(sys.argv[1:])
