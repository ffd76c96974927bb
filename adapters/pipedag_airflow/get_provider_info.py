"""What Airflow's list of providers says of us; the entry point `apache_airflow_provider` leads here."""

from __future__ import annotations

from importlib.metadata import version
from typing import Any


def get_provider_info() -> dict[str, Any]:
    """Return the description of this provider, as Airflow's `provider_info.schema.json` has it."""
    return {
        "package-name": "pipedag-core",
        "name": "pipedag",
        "description": "Data pipelines in plain Python: stages that commit at once, and tasks that run only when something changed.",
        "versions": [version("pipedag-core")],
        "integrations": [
            {"integration-name": "pipedag", "external-doc-url": "https://pypi.org/project/pipedag-core/", "tags": ["software"]}
        ],
        "operators": [
            {
                "integration-name": "pipedag",
                "python-modules": ["pipedag_airflow.operators", "pipedag_airflow.kubernetes", "pipedag_airflow.scoring"],
            }
        ],
        "extra-links": ["pipedag_airflow.operators.WhatHappened"],
        "config": {
            "pipedag": {
                "description": "Options of the pipedag operators.",
                "options": {
                    "deployment": {
                        "description": "Names this Airflow installation in the ids of runs, where several write the same stores.",
                        "version_added": None,
                        "type": "string",
                        "example": "production",
                        "default": "",
                    }
                },
            }
        },
    }
