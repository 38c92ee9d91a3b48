"""Container files and Kubernetes manifests: what can be said about them without Docker or a cluster."""

import re
import subprocess
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml

DEPLOY = Path(__file__).parents[2] / "step5_serving" / "deploy"
KUBERNETES = DEPLOY / "kubernetes"
COMPOSE: dict[str, Any] = yaml.safe_load((DEPLOY / "compose.yaml").read_text("utf-8"))
SERVICES: dict[str, dict[str, Any]] = COMPOSE["services"]
DOCKERFILE = (DEPLOY / "Dockerfile").read_text("utf-8")
KUSTOMIZATION: dict[str, Any] = yaml.safe_load((KUBERNETES / "kustomization.yaml").read_text("utf-8"))
OBJECTS: list[dict[str, Any]] = [
    document for name in KUSTOMIZATION["resources"] for document in yaml.safe_load_all((KUBERNETES / name).read_text())
]


def one(kind: str, name: str) -> dict[str, Any]:
    (found,) = [item for item in OBJECTS if item["kind"] == kind and item["metadata"]["name"] == name]
    return found


def pods() -> list[tuple[str, dict[str, Any]]]:
    return [
        (item["metadata"]["name"], item["spec"]["template"]) for item in OBJECTS if "template" in item.get("spec", {})
    ]


def containers() -> list[tuple[dict[str, Any], dict[str, Any]]]:
    """Every container with its pod."""
    return [
        (container, pod["spec"])
        for _, pod in pods()
        for container in [*pod["spec"].get("initContainers", []), *pod["spec"]["containers"]]
    ]


@pytest.mark.parametrize("stage", ["gateway", "engine"])
def test_images_are_made_from_the_lock_and_run_as_nobody_special(stage: str) -> None:
    text = DOCKERFILE.split(f" AS {stage}\n")[1].split("\nFROM ")[0]
    user = re.search(r"^USER (\d+):(\d+)$", text, re.M)
    assert user is not None
    assert int(user[1]) > 0
    assert "HEALTHCHECK" in text
    build = DOCKERFILE.split(f" AS build-{stage}\n")[1].split("\nFROM ")[0]
    assert "--constraint requirements.lock" in build


def test_the_overrides_are_those_of_the_workspace() -> None:
    """The Dockerfile's sed finds in pyproject.toml what uv would."""
    command = re.search(r"RUN (sed .*?) > overrides.txt", DOCKERFILE)
    assert command is not None
    root = DEPLOY.parents[1]
    found = subprocess.run(["sh", "-c", command[1]], cwd=root, capture_output=True, text=True, check=True).stdout
    wanted = tomllib.loads((root / "pyproject.toml").read_text("utf-8"))["tool"]["uv"]["override-dependencies"]
    assert found.splitlines() == wanted


@pytest.mark.parametrize("name", SERVICES)
def test_a_service_of_the_compose_file_is_locked_down(name: str) -> None:
    service = SERVICES[name]
    assert service["read_only"] is True
    assert service["cap_drop"] == ["ALL"]
    assert "no-new-privileges:true" in service["security_opt"]
    assert all(port.startswith("127.0.0.1:") for port in service.get("ports", []))
    assert "build" in service or (re.search(r":v?\d+\.\d+\.\d+$", service["image"]) and "healthcheck" in service)
    assert "build" in service or not str(service["user"]).startswith("0")


def test_only_gateway_and_prometheus_reach_the_engine_and_no_secret_is_in_a_file() -> None:
    assert COMPOSE["networks"]["back"] == {"internal": True}
    assert SERVICES["engine"]["networks"] == ["back"]
    assert "ports" not in SERVICES["engine"]
    for service in SERVICES.values():
        for name, value in service.get("environment", {}).items():
            assert name.endswith("__FILE") or not re.search("password|secret|key|token", f"{name} {value}", re.I)
    assert all(set(secret) == {"file"} for secret in COMPOSE["secrets"].values())
    assert (DEPLOY / ".gitignore").read_text().strip() == "secrets/"
    assert not [item for item in OBJECTS if item["kind"] == "Secret"]
    for name in (mount.split(":")[0] for service in SERVICES.values() for mount in service.get("volumes", [])):
        assert not name.startswith("./") or (DEPLOY / name).exists()
    assert (DEPLOY.parents[1] / "step5_serving/deploy/Dockerfile").samefile(
        DEPLOY / SERVICES["gateway"]["build"]["context"] / SERVICES["gateway"]["build"]["dockerfile"]
    )


def test_the_gateways_arguments_are_options_that_serve_has() -> None:
    from typer.main import get_command

    from step5_serving.cli import app

    options = {name for option in get_command(app).commands["serve"].params for name in option.opts}  # type: ignore[attr-defined]
    (gateway,) = one("Deployment", "gateway")["spec"]["template"]["spec"]["containers"]
    image = re.search(r'ENTRYPOINT \["python", "-m", "step5_serving"\]\nCMD (\[.*\])', DOCKERFILE)
    assert image is not None
    for arguments in (gateway["args"], yaml.safe_load(image[1])):
        assert arguments[0] == "serve"
        assert {word.partition("=")[0] for word in arguments if word.startswith("--")} <= options


@pytest.mark.parametrize("item", OBJECTS, ids=lambda item: f"{item['kind']} {item['metadata']['name']}")
def test_kubernetes_accepts_the_manifest(item: dict[str, Any]) -> None:
    validate = pytest.importorskip(
        "kubernetes_validate", reason="kubernetes-validate (a developers' tool) is not installed"
    )
    validate.validate(item, "1.34", strict=True)


@pytest.mark.parametrize(("container", "pod"), containers(), ids=lambda part: part.get("name"))
def test_every_container_satisfies_the_restricted_standard_and_says_what_it_needs(
    container: dict[str, Any], pod: dict[str, Any]
) -> None:
    assert pod["securityContext"]["runAsNonRoot"] is True
    assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    assert pod["automountServiceAccountToken"] is False
    assert container["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }
    assert {"cpu", "memory"} <= set(container["resources"]["requests"])
    assert "memory" in container["resources"]["limits"]
    volumes = {volume["name"] for volume in pod["volumes"]}
    assert {mount["name"] for mount in container["volumeMounts"]} <= volumes
    if container in pod["containers"]:
        assert {"readinessProbe", "livenessProbe"} <= set(container)


def test_everything_that_points_at_something_finds_it() -> None:
    labels = {name: pod["metadata"]["labels"] for name, pod in pods()}
    for item in OBJECTS:
        spec = item.get("spec", {})
        selector = spec.get("podSelector", spec.get("selector")) or {}
        wanted = selector.get("matchLabels", {} if "matchExpressions" in selector else selector)
        if wanted and item["kind"] != "PersistentVolumeClaim":
            assert any(wanted.items() <= found.items() for found in labels.values()), item["metadata"]["name"]
    images = {image["name"] for image in KUSTOMIZATION["images"]}
    assert {container["image"] for container, _ in containers()} == images
    scaler = one("HorizontalPodAutoscaler", "engine")["spec"]
    assert one(scaler["scaleTargetRef"]["kind"], scaler["scaleTargetRef"]["name"])["spec"]["serviceName"] == "engine"
    adapter = yaml.safe_load((KUBERNETES / "adapter-values.yaml").read_text())["rules"]["external"]
    assert [rule["name"]["as"] for rule in adapter] == [m["external"]["metric"]["name"] for m in scaler["metrics"]]


def test_the_gateway_knows_every_engine_that_the_autoscaler_may_start_and_its_slots() -> None:
    (gateway,) = one("Deployment", "gateway")["spec"]["template"]["spec"]["containers"]
    (engine,) = one("StatefulSet", "engine")["spec"]["template"]["spec"]["containers"]
    most = one("HorizontalPodAutoscaler", "engine")["spec"]["maxReplicas"]
    urls = [word.removeprefix("--engine-url=") for word in gateway["args"] if word.startswith("--engine-url=")]
    assert urls == [f"http://engine-{number}.engine:8000" for number in range(most)]
    assert set(engine["args"]) & set(gateway["args"]) == {"--host=0.0.0.0", "--slots=32"}
    assert one("Deployment", "gateway")["spec"]["replicas"] == 1  # one writer of the accounts
    assert one("Deployment", "gateway")["spec"]["strategy"] == {"type": "Recreate"}


def test_the_network_policies_deny_what_they_do_not_name() -> None:
    deny = one("NetworkPolicy", "default-deny")["spec"]
    assert deny == {"podSelector": {}, "policyTypes": ["Ingress", "Egress"]}
    engine = one("NetworkPolicy", "engine")["spec"]
    assert engine["egress"] == []
    assert {"podSelector": {"matchLabels": {"app": "gateway"}}} in engine["ingress"][0]["from"]
    assert engine["ingress"][0]["ports"] == [{"port": 8000}]
