from __future__ import annotations

import zlib
from base64 import urlsafe_b64decode

import pytest

from pipedag_core.define import Flow, GroupNode, Stage, materialize
from pipedag_core.errors import FlowError
from pipedag_core.plan.draw import dot, mermaid, outline
from pipedag_core.plan.selection import select


@materialize
def task(*args):
    return None


@materialize(ordering_barrier=True)
def barrier(*args):
    return None


@pytest.fixture
def flow():
    with Flow("f") as flow:
        with Stage("outer"):
            a = task()
            with Stage("inner"), GroupNode("group"):
                b = task(a)
            barrier()
        with Stage("end"):
            task(b)
    return flow


def test_mermaid_shows_stages_in_stages_and_edges(flow):
    assert flow.graph() == (
        "flowchart LR\n"
        '  subgraph s0["outer"]\n'
        '    t0["task"]\n'
        '    t2["barrier"]\n'
        '    subgraph s1["inner"]\n'
        '      subgraph s2["group"]\n'
        '        t1["task"]\n'
        "      end\n"
        "    end\n"
        "  end\n"
        '  subgraph s3["end"]\n'
        '    t3["task"]\n'
        "  end\n"
        "  t0 --> t1\n"
        "  t1 -.-> t2\n"
        "  t1 --> t3\n"
    )


def test_dot_shows_the_same(flow):
    text = flow.graph("dot")
    assert text.startswith('digraph "f" {')
    assert text.count("subgraph cluster_") == 4
    assert "t0 -> t1;" in text
    assert "t1 -> t2 [style=dotted];" in text


def test_a_part_of_a_plan_shows_only_that_part(flow):
    assert mermaid(select(flow.plan(), stages=["end"])) == 'flowchart LR\n  subgraph s0["end"]\n    t0["task"]\n  end\n'
    assert 't0["task"]' in mermaid(select(flow.plan(), tasks=["end.task"]))


def test_names_cannot_say_anything_but_themselves():
    evil = '"]; <script>alert(1)</script> #35; \\" end ]}`'
    with Flow(evil) as flow:
        with Stage(evil), GroupNode("a\nb"):
            materialize(name=evil)(task.fn)()
    plan = flow.plan()
    for line in mermaid(plan).splitlines():
        label = line.partition('["')[2].removesuffix('"]')
        assert not set(label) & set("\"<>[]{}`\\'\n")
    assert "#34;#93;#59; #60;script#62;" in mermaid(plan)
    # Without escaped characters, every quote in the text opens or closes a label.
    bare = dot(plan).replace("\\\\", "").replace('\\"', "")
    assert all(line.count('"') in (0, 2) for line in bare.splitlines())
    assert "<script>" not in outline(plan)
    assert "a b" in dot(plan)


def test_the_address_of_a_picture_holds_the_graph(flow):
    address = flow.visualize_url()
    assert address.startswith("https://kroki.io/graphviz/svg/")
    assert zlib.decompress(urlsafe_b64decode(address.rpartition("/")[2])).decode() == flow.graph("dot")


def test_an_unknown_format_is_refused_with_those_that_there_are(flow):
    for format in ("svg", "html", "gif"):
        with pytest.raises(FlowError, match="mermaid, dot"):
            flow.graph(format)
