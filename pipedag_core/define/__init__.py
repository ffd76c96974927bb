"""The declared graph: flows, stages, tasks, and what tasks take and return. Pure: nothing here reads, writes or imports a library."""

from pipedag_core.define.flow import Flow
from pipedag_core.define.group import GroupNode, VisualizationStyle
from pipedag_core.define.inout import InOutSpecification
from pipedag_core.define.lazydict import LazyDict
from pipedag_core.define.options import AUTO_VERSION, TaskOptions
from pipedag_core.define.refs import Merged, Reference, TaskGetItem
from pipedag_core.define.stage import Stage
from pipedag_core.define.task import Task, TaskFunction, materialize
from pipedag_core.define.values import Blob, ExternalTableReference, RawSql, Schema, SortCol, SortOrder, Table, View
from pipedag_core.define.versions import input_stage_versions

__all__ = [
    "AUTO_VERSION",
    "Blob",
    "ExternalTableReference",
    "Flow",
    "GroupNode",
    "InOutSpecification",
    "LazyDict",
    "Merged",
    "RawSql",
    "Reference",
    "Schema",
    "SortCol",
    "SortOrder",
    "Stage",
    "Table",
    "Task",
    "TaskFunction",
    "TaskGetItem",
    "TaskOptions",
    "View",
    "VisualizationStyle",
    "input_stage_versions",
    "materialize",
]
