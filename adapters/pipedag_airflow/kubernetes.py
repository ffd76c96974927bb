"""Steps in pods: the same command line as everywhere, in an image that has the flow's code and dependencies."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import timedelta
from typing import TYPE_CHECKING, Any, Final

from airflow.providers.cncf.kubernetes.operators.pod import KubernetesPodOperator
from airflow.sdk import timezone
from airflow.sdk.exceptions import AirflowFailException, AirflowRescheduleException

from pipedag_airflow.operators import PipedagStepOperator, seconds_of
from pipedag_airflow.work import REGENERATE, Worker

if TYPE_CHECKING:
    from airflow.sdk import Context

#: Where the pod's helper for XCom looks for what it shall bring back.
_REPORT: Final = "/airflow/xcom/return.json"
_WAITING: Final = 75
_MISUSE: Final = 2


class PipedagKubernetesStepOperator(PipedagStepOperator, KubernetesPodOperator):
    """Carries out one step in a pod.

    Takes the arguments of `PipedagStepOperator`, but `python`, and those of `KubernetesPodOperator` (`image`, `namespace`, `env_vars`, `secrets`,
    `container_resources`, ...). The pod runs `pipedag step ...` in the image's working directory, which has the flow's code and its `pipedag.yaml`;
    `command` are other words in place of `pipedag`. The run id, the options of the run and the way back are the same as for other operators.

    Connections of Airflow are put into the pod's environment as they are; for secrets use `secrets` instead.
    """

    template_fields: Sequence[str] = tuple(  # pyright: ignore[reportIncompatibleVariableOverride] -- its parents name two types for it
        dict.fromkeys(
            [
                *(field for field in PipedagStepOperator.template_fields if field != "python"),
                *(field for field in KubernetesPodOperator.template_fields if field not in ("cmds", "arguments")),
            ]
        )
    )
    ui_color = "#dbe9f6"

    def execute(self, context: Context) -> Any:
        """Carry out the step in a pod; the report is what it returns."""
        self._worker = Worker(self, context)
        # The report comes back by the file that the pod's helper reads.
        self.do_xcom_push = True
        return self._worker.work_with(lambda: KubernetesPodOperator.execute(self, context) or {})

    def on_kill(self) -> None:
        """Remove the pod."""
        KubernetesPodOperator.on_kill(self)

    def build_pod_request_obj(self, context: Context | None = None, *, dry_run: bool = False) -> Any:
        """Return the pod, with the step's command line."""
        worker = Worker(self, context) if context is not None else self._worker
        words = worker.command(report=_REPORT) if worker is not None else []
        self.cmds, self.arguments = words[:1], words[1:]
        variables: Mapping[str, str] = worker.variables() if worker is not None else {}
        if variables:
            from kubernetes.client import models as k8s

            own = [item for item in self.env_vars or [] if item.name not in variables]
            self.env_vars = [*own, *(k8s.V1EnvVar(name=name, value=value) for name, value in variables.items())]
        return KubernetesPodOperator.build_pod_request_obj(self, context, dry_run=dry_run)

    def cleanup(self, pod: Any, remote_pod: Any, xcom_result: dict[str, Any] | None = None, context: Context | None = None) -> None:
        """Remove the pod, and tell a step that has to wait, or that no other try can help, from one that failed."""
        code = _exit_code(remote_pod, self.base_container_name)
        if code not in (_WAITING, _MISUSE):
            KubernetesPodOperator.cleanup(self, pod, remote_pod, xcom_result, context)
            return
        self.process_pod_deletion(remote_pod, reraise=False)
        if code == _MISUSE:
            raise AirflowFailException(f"{self.step} was refused; the pod's log says why. If the flow is wired differently: {REGENERATE}")
        interval = seconds_of(self.wait_interval)
        self.log.info("Another run writes the stage. The next try is in %.0f s; the slot is free until then.", interval)
        raise AirflowRescheduleException(timezone.utcnow() + timedelta(seconds=interval))


def _exit_code(pod: Any, container: str) -> int | None:
    statuses = (pod.status.container_statuses if pod is not None and pod.status is not None else None) or []
    status = next((item for item in statuses if item.name == container), None)
    ended = status.state.terminated if status is not None and status.state is not None else None
    return ended.exit_code if ended is not None else None
