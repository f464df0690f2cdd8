"""What the files of deploy/ run: by systemd, Compose and Kubernetes."""

import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

DEPLOY = Path(__file__).parents[1] / "deploy"
UNITS = sorted((DEPLOY / "systemd").glob("*.service"))
MANIFESTS = sorted((DEPLOY / "kubernetes").glob("*.yaml"))
PROGRAM = "/opt/pyapp/bin/pyapp"


@dataclass(frozen=True)
class Started:
    """A command with the name of its variables: owner, sync or stats."""

    place: str
    words: tuple[str, ...]
    variables: str


def read_compose() -> dict[str, Any]:
    """Return the services of deploy/compose.yml."""
    text = (DEPLOY / "compose.yml").read_text(encoding="utf-8")
    services: dict[str, Any] = yaml.safe_load(text)["services"]
    return services


def read_manifests() -> list[dict[str, Any]]:
    """Return the objects of deploy/kubernetes."""
    return [
        found
        for file in MANIFESTS
        for found in yaml.safe_load_all(file.read_text(encoding="utf-8"))
    ]


def pod_of(manifest: dict[str, Any]) -> dict[str, Any] | None:
    """Return the specification of the pods of an object, or None."""
    spec = manifest["spec"]
    spec = spec.get("jobTemplate", {}).get("spec", spec)
    pod: dict[str, Any] | None = spec.get("template", {}).get("spec")
    return pod


def containers_of(pod: dict[str, Any]) -> list[dict[str, Any]]:
    """Return the containers of a pod, in the order of their start."""
    return [*pod.get("initContainers", ()), *pod["containers"]]


def list_started() -> list[Started]:
    """Return all commands that the files start."""
    return [*_by_systemd(), *_by_compose(), *_by_kubernetes()]


def _by_systemd() -> list[Started]:
    found: list[Started] = []
    for unit in UNITS:
        lines = unit.read_text(encoding="utf-8").splitlines()
        values = [line.partition("=") for line in lines]
        (file,) = (value for key, _, value in values if key == "EnvironmentFile")
        for key, _, value in values:
            if key == "ExecStart":
                program, *words = shlex.split(value)
                assert program == PROGRAM
                found.append(Started(unit.name, tuple(words), Path(file).stem))
    return found


def _by_compose() -> list[Started]:
    return [
        Started(f"compose {name}", tuple(service["command"]), Path(file).stem)
        for name, service in read_compose().items()
        for file in service["env_file"]
    ]


def _by_kubernetes() -> list[Started]:
    return [
        Started(
            f"kubernetes {container['name']}",
            tuple(container["args"]),
            source["secretRef"]["name"].removeprefix("pyapp-"),
        )
        for manifest in read_manifests()
        if (pod := pod_of(manifest))
        for container in containers_of(pod)
        for source in container["envFrom"]
    ]
