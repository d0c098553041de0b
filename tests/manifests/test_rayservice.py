"""The committed RayService against what will read it: Serve, the application, Kubernetes and KubeRay."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml
from packaging.requirements import Requirement
from ray.serve.schema import ServeDeploySchema

from cluster import rayservice
from deployments.app import ServeArgs, build
from pgmoe.config import EngineConfig

CONFIG: dict[str, Any] = yaml.safe_load(rayservice.CONFIG.read_text())
MANIFEST: dict[str, Any] = yaml.safe_load(rayservice.OUT.read_text())
SERVE: dict[str, Any] = yaml.safe_load(MANIFEST["spec"]["serveConfigV2"])
CLUSTER: dict[str, Any] = MANIFEST["spec"]["rayClusterConfig"]
HEAD: dict[str, Any] = CLUSTER["headGroupSpec"]
(WORKERS,) = CLUSTER["workerGroupSpecs"]

# Read off the schema of KubeRay 1.7.0's CRD (ray.io_rayservices.yaml), which prunes what it does not know.
KUBERAY_FIELDS = {
    "spec": {"excludeHeadPodFromServeSvc", "serveConfigV2", "rayClusterConfig"},
    "rayClusterConfig": {
        "rayVersion",
        "enableInTreeAutoscaling",
        "autoscalerOptions",
        "headGroupSpec",
        "workerGroupSpecs",
    },
    "autoscalerOptions": {"idleTimeoutSeconds"},
    "headGroupSpec": {"rayStartParams", "template"},
    "workerGroupSpecs": {
        "groupName",
        "replicas",
        "minReplicas",
        "maxReplicas",
        "rayStartParams",
        "template",
    },
}

each_pod = pytest.mark.parametrize("group", [HEAD, WORKERS], ids=["head", "worker"])


def container(group: dict[str, Any]) -> dict[str, Any]:
    (only,) = group["template"]["spec"]["containers"]
    return dict(only)


def ports(group: dict[str, Any]) -> dict[str, int]:
    return {port["name"]: port["containerPort"] for port in container(group)["ports"]}


def differing(here: Any, there: Any, path: str = "") -> set[str]:
    """Where two YAML documents differ, as dotted paths."""
    if isinstance(here, dict) and isinstance(there, dict):
        keys = here.keys() | there.keys()
        return set().union(*(differing(here.get(k), there.get(k), f"{path}.{k}") for k in keys))
    if isinstance(here, list) and isinstance(there, list) and len(here) == len(there):
        return set().union(
            *(differing(a, b, f"{path}[{i}]") for i, (a, b) in enumerate(zip(here, there, strict=True)))
        )
    return set() if here == there else {path}


def test_the_committed_manifest_is_what_config_yaml_generates() -> None:
    assert rayservice.OUT.read_text() == rayservice.manifest(CONFIG), "run `python -m cluster.rayservice`"


def test_serve_accepts_the_config_in_the_manifest() -> None:
    schema = ServeDeploySchema.model_validate(SERVE)
    assert schema.http_options.host == "0.0.0.0"
    assert [application.import_path for application in schema.applications] == ["deployments.app:build"]


def test_the_application_accepts_its_arguments() -> None:
    arguments = ServeArgs.model_validate(SERVE["applications"][0]["args"])
    assert EngineConfig.parse(arguments.engine).device == "cuda"
    assert build(arguments)._bound_deployment.name == "Ingress"  # the one that is given other options


def test_only_what_a_cluster_needs_differs_from_config_yaml() -> None:
    application = ".applications[0]"
    args = f"{application}.args"
    assert differing(CONFIG, SERVE) == {
        ".http_options.host",
        ".proxy_location",
        f"{args}.engine.model",
        f"{args}.engine.device",
        f"{args}.engine.device_memory",
        f"{args}.ingress_replicas",
        f"{application}.deployments",
    }


def test_no_replica_can_land_on_the_head_which_has_no_cores_and_no_model() -> None:
    assert HEAD["rayStartParams"]["num-cpus"] == "0"
    deployments = {one["name"]: one for one in SERVE["applications"][0]["deployments"]}
    assert deployments["Ingress"]["ray_actor_options"]["num_cpus"] > 0


@each_pod
def test_kubernetes_accepts_the_pods(group: dict[str, Any]) -> None:
    pod = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "pod"}, "spec": group["template"]["spec"]}
    kubernetes_validate.validate(pod, "1.31", strict=True)


def test_kuberay_knows_every_field() -> None:
    objects = {
        "spec": MANIFEST["spec"],
        "rayClusterConfig": CLUSTER,
        "autoscalerOptions": CLUSTER["autoscalerOptions"],
        "headGroupSpec": HEAD,
        "workerGroupSpecs": WORKERS,
    }
    assert (MANIFEST["apiVersion"], MANIFEST["kind"]) == ("ray.io/v1", "RayService")
    assert {name: set(fields) for name, fields in objects.items()} == KUBERAY_FIELDS
    for group in (HEAD, WORKERS):
        assert all(isinstance(value, str) for value in group["rayStartParams"].values())


@each_pod
def test_the_pods_open_the_ports_that_serve_listens_on(group: dict[str, Any]) -> None:
    assert ports(group)["serve"] == SERVE["http_options"]["port"]
    assert ports(group)["serve-grpc"] == SERVE["grpc_options"]["port"]


def test_each_engine_finds_a_gpu_and_the_head_takes_none() -> None:
    bounds = SERVE["applications"][0]["args"]["autoscaling"]
    assert (WORKERS["minReplicas"], WORKERS["maxReplicas"]) == (
        bounds["min_replicas"],
        bounds["max_replicas"],
    )
    assert container(WORKERS)["resources"]["limits"]["nvidia.com/gpu"] == "1"
    assert "nvidia.com/gpu" not in container(HEAD)["resources"]["limits"]


def test_the_model_lies_on_a_volume_that_is_mounted() -> None:
    (mount,) = container(WORKERS)["volumeMounts"]
    (volume,) = WORKERS["template"]["spec"]["volumes"]
    assert mount["name"] == volume["name"]
    assert Path(SERVE["applications"][0]["args"]["engine"]["model"]).is_relative_to(mount["mountPath"])


def test_the_ray_of_the_image_is_one_that_pgmoe_works_with() -> None:
    project = tomllib.loads((rayservice.CONFIG.parent / "pyproject.toml").read_text())["project"]
    (ray,) = (r for r in map(Requirement, project["dependencies"]) if r.name == "ray")
    assert CLUSTER["rayVersion"] in ray.specifier


def test_the_image_and_the_config_can_be_ones_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    own = yaml.safe_load(rayservice.CONFIG.read_text())
    own["http_options"]["port"] = 8123
    (tmp_path / "own.yaml").write_text(yaml.safe_dump(own))
    out = tmp_path / "out.yaml"
    options = ["--config", str(tmp_path / "own.yaml"), "--image", "registry.example/own:1", "--out", str(out)]
    monkeypatch.setattr("sys.argv", ["rayservice", *options])
    rayservice.main()
    cluster = yaml.safe_load(out.read_text())["spec"]["rayClusterConfig"]
    assert container(cluster["headGroupSpec"])["image"] == "registry.example/own:1"
    assert ports(cluster["workerGroupSpecs"][0])["serve"] == 8123
