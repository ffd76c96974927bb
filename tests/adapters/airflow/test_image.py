"""The image of docs/airflow-deployment.md: built from the page's Dockerfile, pushed, and a whole run in it, each step in a container of its own."""

from __future__ import annotations

import json
import os
from urllib.parse import parse_qs, urlsplit

import psycopg
import pytest

from tests.adapters.airflow import test_deployment_page as page

TOOL, REGISTRY = os.environ.get("PIPEDAG_TEST_DOCKER", ""), os.environ.get("PIPEDAG_TEST_REGISTRY", "")

pytestmark = [
    pytest.mark.skipif(
        not (TOOL and REGISTRY),
        reason="needs Docker and a registry: PIPEDAG_TEST_DOCKER names the command, PIPEDAG_TEST_REGISTRY host and port (`make image`)",
    ),
    pytest.mark.timeout(900),
]


@pytest.fixture
def desk(tmp_path, airflow_home, postgres_url, schema_prefix, monkeypatch):
    monkeypatch.setenv("SCHEMA_PREFIX", schema_prefix)
    return page.Desk(tmp_path, postgres_url, airflow_home)


def test_the_image_is_built_and_pushed_and_carries_out_a_run(desk, postgres_url, schema_prefix):
    for name in ("orders.py", "pipedag.yaml", "requirements.txt", "Dockerfile"):
        desk.written(name)
    # What is not published yet comes from a wheel of this checkout.
    (desk.project.parent / "wheels").rename(desk.project / "wheels")
    file = desk.project / "Dockerfile"
    file.write_text(
        file.read_text().replace("COPY requirements.txt .", "COPY wheels /wheels\nENV PIP_FIND_LINKS=/wheels\nCOPY requirements.txt .")
    )
    [command] = [text.strip() for language, text in page.BLOCKS if language == "sh" and text.startswith("docker build")]
    desk.run(command.replace("registry.example.org", REGISTRY).replace("docker ", f"{TOOL} "))

    # The server of the tests may listen on a socket only.
    socket = parse_qs(urlsplit(postgres_url).query).get("host", [""])[0]
    volume = f"-v {socket}:{socket} " if socket.startswith("/") else ""
    variables = f"-e STORE_URL='{postgres_url}' -e SCHEMA_PREFIX={schema_prefix}"

    def contained(words):
        return desk.run(f"{TOOL} run --rm --network host {volume}{variables} {REGISTRY}/orders:1 {words}")

    steps = [step["id"] for step in json.loads(contained("pipedag plan orders:flow --instance full --json"))["steps"]]
    assert len(steps) == 7
    told = [json.loads(contained(f"pipedag step orders:flow {step} --instance full --run-id image")) for step in steps]
    assert [item["outcome"] for item in told] == ["opened", "ran", "committed", "opened", "ran", "committed", "finished"]
    with psycopg.connect(postgres_url) as connection:
        assert connection.execute(f'SELECT customer, amount FROM "{schema_prefix}full_marts".totals ORDER BY 1').fetchall() == [
            ("a", 15.0),
            ("b", 20.0),
        ]
