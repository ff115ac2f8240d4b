"""deploy/kubernetes: Kubernetes's own schemas take what is in it, and it agrees with the settings and
the service."""

import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml

from msgpush.adapters.http.health import OPERATIONS
from msgpush.entrypoints.commands.serve import DRAIN_GRACE
from msgpush.entrypoints.settings import Settings
from msgpush.entrypoints.table import DEFAULTS, FILES, SETTINGS
from tests.support.tokens import SECRET

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "deploy" / "kubernetes"
NAMED = {"app.kubernetes.io/name": "msgpush"}
# Kinds of others' (custom resources), and of kustomize, of which Kubernetes has no schema.
OTHERS = ("monitoring.coreos.com/", "keda.sh/", "kustomize.config.k8s.io/")


def documents(file: Path) -> list[dict[str, Any]]:
    return [each for each in yaml.safe_load_all(file.read_text()) if each]


def manifests() -> Iterator[tuple[str, dict[str, Any]]]:
    for file in sorted(FOLDER.rglob("*.yaml")):
        for each in documents(file):
            # Values of a chart, as autoscaling's for the Prometheus adapter, are no resource.
            if "kind" in each and not each["apiVersion"].startswith(OTHERS):
                yield f"{file.relative_to(FOLDER)}: {each['kind']}", each


def the(kind: str) -> dict[str, Any]:
    (found,) = [each for name, each in manifests() if name.startswith(f"{kind.lower()}.yaml:")]
    return found


DEPLOYMENT = the("Deployment")["spec"]
POD = DEPLOYMENT["template"]["spec"]
(CONTAINER,) = POD["containers"]
LINES = [line for line in (FOLDER / "settings.env").read_text().splitlines() if line[:1] != "#"]
ENVIRONMENT = dict(line.split("=", 1) for line in LINES)


@pytest.mark.parametrize("version", ["1.30", "1.37"])
@pytest.mark.parametrize(
    "manifest", [each for _, each in manifests()], ids=[name for name, _ in manifests()]
)
def test_kubernetes_takes_the_manifest(manifest: dict[str, Any], version: str) -> None:
    kubernetes_validate.validate(manifest, version, strict=True)


def test_the_schemas_would_notice_a_field_that_there_is_not() -> None:
    wrong = {**the("Service"), "spec": {"port": 8089}}
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(wrong, "1.37", strict=True)


def test_every_file_is_taken_in_by_a_kustomization() -> None:
    for listing in FOLDER.rglob("kustomization.yaml"):
        if listing.parent.name == "autoscaling":
            continue  # its parts exclude one another
        (content,) = documents(listing)
        others = {each.name for each in listing.parent.glob("*.yaml")} - {listing.name}
        assert {*content["resources"]} == others


@pytest.mark.skipif(shutil.which("kubectl") is None, reason="needs kubectl")
def test_kustomize_builds_it_with_its_components_and_changes_no_selector(tmp_path: Path) -> None:
    base = os.path.relpath(FOLDER, tmp_path)
    parts = [f"{base}/{name}" for name in ("monitoring", "ingress")]
    overlay = {"kind": "Kustomization", "resources": [base], "components": parts}
    (tmp_path / "kustomization.yaml").write_text(yaml.safe_dump(overlay))
    command = ["kubectl", "kustomize", str(tmp_path)]
    built = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    resources = {each["kind"]: each for each in yaml.safe_load_all(built)}
    assert {"Deployment", "Ingress", "PodMonitor", "PrometheusRule"} <= resources.keys()
    written = the("NetworkPolicy")["spec"]
    assert resources["NetworkPolicy"]["spec"] == written
    labels = resources["Deployment"]["spec"]["template"]["metadata"]["labels"]
    assert labels == NAMED
    (container,) = resources["Deployment"]["spec"]["template"]["spec"]["containers"]
    assert re.fullmatch(r"\S+/msgpush:\S+", container["image"])
    # The ConfigMap's name has its content's hash.
    (source,) = container["envFrom"]
    assert source["configMapRef"]["name"] == resources["ConfigMap"]["metadata"]["name"]
    assert resources["ConfigMap"]["data"] == ENVIRONMENT


def test_its_settings_are_settings_and_valid_and_mostly_the_defaults() -> None:
    assert {name.lower() for name in ENVIRONMENT} <= SETTINGS.keys()
    files = {each["name"] for each in CONTAINER["env"]}
    assert {name.lower() for name in files} <= {*FILES.values()}
    settings = Settings.from_environ(
        {**ENVIRONMENT, "SERVICE_HOST": "0.0.0.0", "JWT_SECRET": SECRET, "REDIS_HOST": "redis"}
    )
    assert settings.mode == "tokens"
    changed = {name for name, text in ENVIRONMENT.items() if DEFAULTS[name.lower()] != text}
    assert changed == {"TRUSTED_PROXIES"}


def test_secrets_are_files_of_the_secret_that_the_page_makes() -> None:
    (mount,) = [each for each in CONTAINER["volumeMounts"] if each["name"] == "secrets"]
    (volume,) = [each for each in POD["volumes"] if each["name"] == "secrets"]
    made = (ROOT / "docs" / "operations.md").read_text() + (
        FOLDER / "kustomization.yaml"
    ).read_text()
    assert f"create secret generic {volume['secret']['secretName']} " in made
    keys = re.findall(r"--from-literal=([\w-]+)=", made)
    for each in CONTAINER["env"]:
        folder, _, key = each["value"].rpartition("/")
        assert folder == mount["mountPath"]
        assert keys.count(key) == 2
    monitor = yaml.safe_load((FOLDER / "monitoring" / "podmonitor.yaml").read_text())
    (endpoint,) = monitor["spec"]["podMetricsEndpoints"]
    token = endpoint["authorization"]["credentials"]
    assert (token["name"], token["key"] in keys) == (volume["secret"]["secretName"], True)


def test_ports_and_probes_are_the_services() -> None:
    (port,) = CONTAINER["ports"]
    assert port["containerPort"] == int(DEFAULTS["service_port"])
    (served,) = the("Service")["spec"]["ports"]
    assert served["targetPort"] == port["name"]
    paths = {each.path for each in OPERATIONS}
    for name, path in (
        ("startupProbe", "/health/live"),
        ("livenessProbe", "/health/live"),
        ("readinessProbe", "/health/ready"),
    ):
        assert CONTAINER[name]["httpGet"] == {"path": path, "port": port["name"]}
        assert path in paths


def test_an_instance_is_given_longer_than_its_drain_takes() -> None:
    takes = CONTAINER["lifecycle"]["preStop"]["sleep"]["seconds"] + DRAIN_GRACE
    assert POD["terminationGracePeriodSeconds"] > takes + float(ENVIRONMENT["DRAIN_SECONDS"])


def test_the_proxy_knows_of_a_drain_before_it_begins() -> None:
    probe = CONTAINER["readinessProbe"]
    assert probe["periodSeconds"] < CONTAINER["lifecycle"]["preStop"]["sleep"]["seconds"]
    assert DEPLOYMENT["strategy"]["rollingUpdate"]["maxUnavailable"] == 0


def test_a_pod_may_do_nothing_that_it_does_not_need() -> None:
    image = (ROOT / "Containerfile").read_text()
    user = POD["securityContext"]["runAsUser"]
    assert f"\nUSER {user}:{POD['securityContext']['runAsGroup']}\n" in image
    assert POD["securityContext"]["runAsNonRoot"]
    assert POD["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    assert CONTAINER["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }
    assert not POD["automountServiceAccountToken"]
    assert not the("ServiceAccount")["automountServiceAccountToken"]
    assert not POD["enableServiceLinks"]


def test_selectors_are_the_pods() -> None:
    assert DEPLOYMENT["selector"]["matchLabels"] == NAMED
    assert the("Service")["spec"]["selector"] == NAMED
    assert the("PodDisruptionBudget")["spec"]["selector"]["matchLabels"] == NAMED
    assert the("NetworkPolicy")["spec"]["podSelector"]["matchLabels"] == NAMED
    monitor = yaml.safe_load((FOLDER / "monitoring" / "podmonitor.yaml").read_text())
    assert monitor["spec"]["selector"]["matchLabels"] == NAMED


def test_the_ingress_waits_for_more_than_two_heartbeats_and_holds_nothing_back() -> None:
    ((_, ingress),) = [each for each in manifests() if each[0].endswith(": Ingress")]
    notes = {
        name.rpartition("/")[2]: text for name, text in ingress["metadata"]["annotations"].items()
    }
    assert int(notes["proxy-read-timeout"]) > 2.5 * float(ENVIRONMENT["HEARTBEAT_INTERVAL"])
    assert (notes["proxy-buffering"], notes["proxy-body-size"]) == ("off", "0")
