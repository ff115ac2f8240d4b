"""What stands in deploy/kubernetes/autoscaling: the programs against real instances, the manifests
against each other.
"""

import importlib
import json
import os
import runpy
import shutil
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest

from tests.support.client import SseClient, request
from tests.support.kubernetes_api import KubernetesApi, pod
from tests.support.redis_servers import RedisServer, free_port
from tests.support.service import ServiceProcess, eventually

DIRECTORY = Path(__file__).parents[2] / "deploy" / "kubernetes" / "autoscaling"
# It comes with schemathesis, and without types.
yaml: Any = importlib.import_module("yaml")
COST = "controller.kubernetes.io/pod-deletion-cost"


def run(script: str, *arguments: str, **environ: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, str(DIRECTORY / script), "--once", *arguments],
        # A proxy that isn't there: the programs must not heed it.
        env={"http_proxy": "http://127.0.0.1:9", "https_proxy": "http://127.0.0.1:9", **environ},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


# The cost of a pod's deletion


@pytest.fixture
def api(tmp_path: Path) -> Iterator[KubernetesApi]:
    with KubernetesApi(tmp_path) as api:
        yield api


class Pods:
    """Instances on addresses of this machine, all at one port, as pods have it."""

    def __init__(self, stack: ExitStack) -> None:
        self._stack, self.port = stack, free_port()

    def start(self, host: str, streams: int) -> None:
        self._stack.enter_context(
            ServiceProcess(SERVICE_HOST=host, SERVICE_PORT=str(self.port), ENABLE_AUTH="false")
        )
        for _ in range(streams):
            stream = self._stack.enter_context(socket.create_connection((host, self.port), 10))
            head = f"GET /sse/stream/a HTTP/1.1\r\nHost: {host}:{self.port}\r\n\r\n"
            stream.sendall(head.encode())
            assert b" 200 " in stream.recv(4096)


@pytest.fixture(scope="module")
def pods() -> Iterator[Pods]:
    with ExitStack() as stack:
        pods = Pods(stack)
        pods.start("127.0.0.2", 3)
        pods.start("127.0.0.3", 20)
        yield pods


def deletion_cost(api: KubernetesApi, pods: Pods) -> subprocess.CompletedProcess[str]:
    arguments = ["--port", str(pods.port), "--account", str(api.account)]
    return run("deletion_cost.py", *arguments, **api.environment)


def costs(api: KubernetesApi) -> dict[str, str | None]:
    return {
        each["metadata"]["name"]: each["metadata"].get("annotations", {}).get(COST)
        for each in api.pods
    }


def test_each_pod_s_cost_is_its_streams(api: KubernetesApi, pods: Pods) -> None:
    api.pods = [
        pod("few", "127.0.0.2"),
        pod("many", "127.0.0.3"),
        pod("starting", "", phase="Pending"),
        pod("mute", "127.0.0.4"),
        pod("stranger", "127.0.0.3", app="redis"),
        pod("going", "127.0.0.3"),
    ]
    api.pods[-1]["metadata"]["deletionTimestamp"] = "2030-01-01T00:00:00Z"
    made = deletion_cost(api, pods)
    assert (made.returncode, made.stderr) == (0, "")
    assert sorted(made.stdout.splitlines()) == ["few 3", "many 20"]
    assert costs(api) == dict.fromkeys(costs(api)) | {"few": "3", "many": "20"}


def test_a_pod_that_speaks_something_else_stops_nothing(api: KubernetesApi, pods: Pods) -> None:
    api.pods = [pod("stranger", "127.0.0.5"), pod("few", "127.0.0.2")]
    with strange(("127.0.0.5", pods.port)):
        made = deletion_cost(api, pods)
    assert (made.returncode, made.stderr) == (0, "")
    assert costs(api) == {"stranger": None, "few": "3"}


def test_what_speaks_something_else_is_no_traceback_of_a_rebalance() -> None:
    with strange(("127.0.0.1", 0)) as port:
        made = run("rebalance.py", "--url", f"http://127.0.0.1:{port}")
    assert made.stderr.startswith("not now: ")
    assert "Traceback" not in made.stderr


@contextmanager
def strange(place: tuple[str, int]) -> Iterator[int]:
    """Something that answers, and speaks no HTTP; gives its port."""
    with socket.create_server(place) as listener:

        def answer() -> None:
            with suppress(OSError):
                connection, _ = listener.accept()
                with connection:
                    connection.sendall(b"SSH-2.0-OpenSSH_9\r\n")
                    connection.recv(4096)

        thread = threading.Thread(target=answer, daemon=True)
        thread.start()
        yield listener.getsockname()[1]
        thread.join(10)


@pytest.mark.parametrize(
    ("before", "after"), [("15", "15"), ("31", "20"), ("2", "20"), ("what", "20"), (None, "20")]
)
def test_a_cost_is_written_where_it_is_off_by_much(
    api: KubernetesApi, pods: Pods, before: str | None, after: str
) -> None:
    api.pods = [pod("many", "127.0.0.3")]
    if before is not None:
        api.pods[0]["metadata"]["annotations"] = {COST: before, "other": "kept"}
    assert deletion_cost(api, pods).returncode == 0
    assert costs(api) == {"many": after}
    assert before is None or api.pods[0]["metadata"]["annotations"]["other"] == "kept"
    assert len(api.patches) == (before != after)


def test_a_pod_that_has_gone_or_is_another_one_by_now_stops_nothing(
    api: KubernetesApi, pods: Pods
) -> None:
    api.pods = [pod(name, "127.0.0.2") for name in ("gone", "replaced", "stays")]

    def change(name: str) -> None:
        if name == "gone":
            del api.pods[0]
        elif name == "replaced":
            api.pods[0]["metadata"]["uid"] = "another"

    api.patching = change
    made = deletion_cost(api, pods)
    assert (made.returncode, made.stderr, made.stdout) == (0, "", "stays 3\n")
    assert api.patches == [("gone", 404), ("replaced", 409), ("stays", 200)]
    assert costs(api) == {"replaced": None, "stays": "3"}


@pytest.mark.parametrize("verb", ["list", "patch"])
def test_a_right_that_is_missing_is_named(api: KubernetesApi, pods: Pods, verb: str) -> None:
    api.pods = [pod("few", "127.0.0.2")]
    api.refused = {verb}
    made = deletion_cost(api, pods)
    assert made.returncode == 1
    assert f'pods is forbidden: cannot {verb} resource "pods"' in made.stderr
    assert "Traceback" not in made.stderr
    assert costs(api) == {"few": None}


def test_a_token_that_has_ended_is_no_traceback_and_is_not_shown(
    api: KubernetesApi, pods: Pods
) -> None:
    (api.account / "token").write_text("of yesterday")
    made = deletion_cost(api, pods)
    assert made.returncode == 1
    assert "401" in made.stderr
    assert "Traceback" not in made.stderr
    assert "yesterday" not in made.stdout + made.stderr


def test_an_api_server_whose_certificate_is_not_the_cluster_s_gets_no_token(
    api: KubernetesApi, pods: Pods, tmp_path_factory: pytest.TempPathFactory
) -> None:
    with KubernetesApi(tmp_path_factory.mktemp("other")) as other:
        arguments = ["--port", str(pods.port), "--account", str(api.account)]
        made = run("deletion_cost.py", *arguments, **other.environment)
    assert made.returncode == 1
    assert "CERTIFICATE_VERIFY_FAILED" in made.stderr


def test_outside_a_cluster_it_says_so(tmp_path: Path) -> None:
    made = run("deletion_cost.py", "--account", str(tmp_path))
    assert made.returncode == 2
    assert "in a pod, with a service account" in made.stderr


# Moving streams


def counts(service: ServiceProcess) -> list[int]:
    """The streams of all instances, as the program finds them out."""
    script = runpy.run_path(str(DIRECTORY / "rebalance.py"))
    found: dict[str, int] = script["Service"](f"http://127.0.0.1:{service.port}", None).counts()
    return sorted(found.values())


@pytest.mark.parametrize(
    ("numbers", "above"),
    [
        ([5] * 16 + [6] * 4, {}),  # 0.8 above the average
        ([0, 300], {1: 150}),
        ([300], {}),
        ([], {}),
        ([0, 0], {}),
    ],
)
def test_who_has_a_stream_or_more_above_the_average_has_too_many(
    numbers: list[int], above: dict[int, int]
) -> None:
    script = runpy.run_path(str(DIRECTORY / "rebalance.py"))
    closed: list[tuple[int, int]] = []

    class Fake:
        def counts(self) -> dict[int, int]:
            return dict(enumerate(numbers))

        def close(self, node: int, number: int) -> int:
            closed.append((node, number))
            return number

    assert script["too_many"](Fake().counts(), 1.1) == above
    assert script["step"](Fake(), 10, 1.1, 1) == (10 if above else 0)
    assert all(number > 0 for _, number in closed)


@pytest.mark.long
def test_streams_above_the_average_are_moved_a_few_at_a_time() -> None:
    with ExitStack() as stack:
        redis = stack.enter_context(RedisServer())
        full, empty = (stack.enter_context(ServiceProcess(REDIS_URL=redis.url)) for _ in range(2))

        def listen(service: ServiceProcess) -> SseClient:
            stream = stack.enter_context(SseClient(service.port, "/sse/stream/a"))
            stream.next()
            return stream

        def known_to_both(numbers: list[int]) -> None:
            eventually(lambda: counts(full) == counts(empty) == numbers)

        streams = [listen(full) for _ in range(30)]
        listen(empty)
        listen(empty)
        known_to_both([2, 30])

        def move(*arguments: str) -> str:
            made = run("rebalance.py", "--url", f"http://127.0.0.1:{empty.port}", *arguments)
            assert (made.returncode, made.stderr) == (0, "")
            return made.stdout

        assert move("--per-second", "5") == "", "32 streams are too few to tell"
        assert move("--per-second", "5", "--least", "10") == "moved 5\n"
        known_to_both([2, 25])
        # Above the average of 13.5 are 11.
        assert move("--per-second", "100", "--least", "10") == "moved 11\n"
        known_to_both([2, 14])
        closed = [stream for stream in streams if _closed(stream)]
        assert len(closed) == 16


def _closed(stream: SseClient) -> bool:
    try:
        event = stream.next(0.2)
    except TimeoutError:
        return False
    assert event.type == "msgpush.close"
    assert '"reconnect":true' in event.data, "so that an EventSource comes back"
    return True


def test_without_an_admin_s_token_nothing_is_moved() -> None:
    with ServiceProcess(JWT_SECRET="a secret of 32 bytes or more, at least") as service:
        made = run("rebalance.py", "--url", f"http://127.0.0.1:{service.port}")
    assert made.returncode == 1
    assert "it takes an admin's token" in made.stderr


# Manifests


def documents(name: str) -> list[dict[str, Any]]:
    return list(yaml.safe_load_all((DIRECTORY / name).read_text()))


def test_the_manifests_name_each_other_and_the_metric_as_it_is() -> None:
    (hpa,) = documents("hpa.yaml")
    (keda,) = documents("keda.yaml")
    (adapter,) = documents("prometheus-adapter.yaml")
    (rule,) = adapter["rules"]["custom"]
    (pods, _) = hpa["spec"]["metrics"]
    assert pods["pods"]["metric"]["name"] == rule["name"]["as"]
    with ServiceProcess() as service, SseClient(service.port, "/sse/stream/a"):
        metrics = request(service.port, "GET", "/metrics").body.decode()
    name = rule["seriesQuery"].partition("{")[0]
    assert f"\n{name}{{" in metrics
    trigger = keda["spec"]["triggers"][0]["metadata"]
    assert name in trigger["query"]
    assert trigger["threshold"] == pods["pods"]["target"]["averageValue"]
    made = keda["spec"]["advanced"]["horizontalPodAutoscalerConfig"]["behavior"]
    assert made == hpa["spec"]["behavior"], "one policy, whichever is used"
    (first, *_) = documents("deletion-cost.yaml")
    assert first["kind"] == "ServiceAccount"


def test_the_role_has_no_right_that_is_not_used() -> None:
    roles = [each for each in documents("deletion-cost.yaml") if each["kind"] == "Role"]
    assert [each["rules"] for each in roles] == [
        [{"apiGroups": [""], "resources": ["pods"], "verbs": ["get", "list", "patch"]}]
    ]


SERVICE = """
apiVersion: apps/v1
kind: Deployment
metadata: {name: msgpush}
spec: {replicas: 2}
"""


@pytest.mark.skipif(shutil.which("kubectl") is None, reason="needs kubectl")
def test_an_overlay_takes_it_in_with_the_programs_and_leaves_the_number_to_the_autoscaler(
    tmp_path: Path,
) -> None:
    (tmp_path / "service.yaml").write_text(SERVICE)
    where = os.path.relpath(DIRECTORY, tmp_path)
    overlay = {"namespace": "push", "resources": ["service.yaml"], "components": [where]}
    (tmp_path / "kustomization.yaml").write_text(json.dumps(overlay))
    command = ["kubectl", "kustomize", str(tmp_path)]
    made = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60)
    found = {
        (each["kind"], each["metadata"]["name"]): each for each in yaml.safe_load_all(made.stdout)
    }
    assert "replicas" not in found["Deployment", "msgpush"]["spec"]
    assert found["HorizontalPodAutoscaler", "msgpush"]["metadata"]["namespace"] == "push"
    pod = found["Deployment", "msgpush-deletion-cost"]["spec"]["template"]["spec"]
    (scripts,) = [each["configMap"]["name"] for each in pod["volumes"] if "configMap" in each]
    for name in ("deletion_cost.py", "rebalance.py"):
        assert found["ConfigMap", scripts]["data"][name] == (DIRECTORY / name).read_text()
    (container,) = pod["containers"]
    assert container["image"].startswith("registry.example.com/msgpush:")


@pytest.mark.parametrize("name", ["deletion-cost", "rebalance"])
def test_the_programs_take_the_arguments_that_their_manifests_give(name: str) -> None:
    (workload,) = [each for each in documents(f"{name}.yaml") if each["kind"] == "Deployment"]
    (container,) = workload["spec"]["template"]["spec"]["containers"]
    script = Path(container["command"][-1]).name
    made = run(script, *container["args"], "--help")
    assert made.returncode == 0
    for argument in container["args"]:
        assert argument.partition("=")[0] in made.stdout
