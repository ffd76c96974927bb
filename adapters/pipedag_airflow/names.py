"""Names as Airflow takes them: ids of tasks and groups, Assets, our run ids. Standard library only."""

from __future__ import annotations

import hashlib
import re
from typing import Final, final
from urllib.parse import quote, unquote

#: What Airflow does not take in the id of a task within its group, and of a group. A dot separates groups, so we use none of our own.
_STRANGE: Final = re.compile(r"[^A-Za-z0-9_-]")
#: Airflow takes 200 characters for a group and 250 for a task with its groups.
_LONGEST: Final = 60
_DIGITS: Final = 8

#: No handler is looked for, and nothing is loaded while a DAG file is parsed, where a scheme begins with `x-`.
SCHEME: Final = "x-pipedag"
#: Of tables of others, which belong to no flow.
EXTERNAL: Final = "x-pipedag-external"


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def safe_id(name: str) -> str:
    """Return a name as a group's or task's id: as it is where Airflow takes it, else with `_` for what it does not take, and a hash of the name."""
    plain = _STRANGE.sub("_", name)
    if plain == name and 0 < len(name) <= _LONGEST:
        return name
    return f"{plain[: _LONGEST - _DIGITS - 1]}_{_hash(name)[:_DIGITS]}"


@final
class Ids:
    """Gives ids that are unique among those that it gave before (case counts not: people read them)."""

    def __init__(self) -> None:
        self._taken: set[str] = set()

    def give(self, name: str) -> str:
        """Return an id for a name; the first who asks for it gets it unchanged."""
        wanted = safe_id(name)
        found, number = wanted, 1
        while found.casefold() in self._taken:
            number += 1
            found = f"{wanted}__{number}"
        self._taken.add(found.casefold())
        return found


def identifier(*parts: str) -> str:
    """Return a Python name made of some texts."""
    text = "__".join(re.sub(r"\W", "_", part, flags=re.ASCII) for part in parts)
    return text if not text[:1].isdigit() else f"s{text}"


def asset_uri(flow: str, instance: str | None, stage: str, table: str) -> str:
    """Return the URI (and name) of a table's Asset: the same at generation, at run time, and for DAGs that wait for it.

    Args:
        flow: Name of the flow.
        instance: Name of the instance; None for the configuration's default.
        stage: Name of the stage.
        table: Readable name of the table; of the task, where the plan does not know the names of its tables.
    """
    return f"{SCHEME}://{'/'.join(quote(part, safe='') for part in (flow, instance or 'default', stage, table))}"


def external_uri(instance: str | None, table: str) -> str:
    """Return the URI (and name) of the Asset of a table of others: the same for all flows of an instance that read it.

    Args:
        instance: Name of the instance, which says where it lies; None for the configuration's default.
        table: `schema.name`, as its `ExternalTableReference` has them.
    """
    schema, _, name = table.rpartition(".")
    return f"{EXTERNAL}://{'/'.join(quote(part, safe='') for part in (instance or 'default', schema, name))}"


def split_external_uri(uri: str) -> tuple[str, str] | None:
    """Return (instance, `schema.name`) of a URI that `external_uri` made, else None."""
    scheme, _, rest = uri.partition("://")
    parts = rest.split("/")
    if scheme != EXTERNAL or len(parts) != 3:
        return None
    instance, schema, name = (unquote(part) for part in parts)
    return instance, f"{schema}.{name}"


def split_asset_uri(uri: str) -> tuple[str, str, str, str] | None:
    """Return (flow, instance, stage, table) of a URI that `asset_uri` made, else None."""
    scheme, _, rest = uri.partition("://")
    parts = rest.split("/")
    if scheme != SCHEME or len(parts) != 4:
        return None
    flow, instance, stage, table = (unquote(part) for part in parts)
    return flow, instance, stage, table


def run_id_of(deployment: str, dag_id: str, airflow_run_id: str, flow: str, instance: str | None) -> str:
    """Return our run id for a run of a DAG: the same for all its tasks, attempts and clearings, and another one in another deployment.

    Args:
        deployment: Names the Airflow installation.
        dag_id, airflow_run_id: Which run of which DAG.
        flow, instance: One DAG may hold several flows.
    """
    text = "\n".join((deployment, dag_id, airflow_run_id, flow, instance or ""))
    return f"airflow-{_hash(text)[:24]}"


def scores_uri(dag_id: str, output: str) -> str:
    """Return the URI of the Asset of what a scoring DAG writes.

    Args:
        dag_id: The DAG.
        output: Name of the output.
    """
    return asset_uri(dag_id, None, "scores", output)
