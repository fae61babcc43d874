"""The files that start clusters: as Ray's own launcher and KubeRay's schema want them."""

import shlex
from pathlib import Path
from typing import Any

import pytest
import yaml

from engram.launch.config import compose_settings, ray_settings


def read(root: Path, name: str) -> dict[str, Any]:
    return yaml.safe_load((root / "launch" / name).read_text())


def test_rays_cluster_launcher_accepts_the_file(root: Path) -> None:
    util = pytest.importorskip("ray.autoscaler._private.util")
    config = read(root, "cluster.yaml")
    util.validate_config(util.prepare_config(config))
    assert config["file_mounts"] == {"/home/ubuntu/wheels": "dist"}


def test_no_working_folder_is_shipped(root: Path) -> None:
    for name in ("cluster.yaml", "kuberay.yaml"):
        text = (root / "launch" / name).read_text()
        assert "working_dir" not in text and ".whl" in text


def test_the_job_for_kubernetes_asks_for_what_engram_takes(root: Path) -> None:
    job = read(root, "kuberay.yaml")
    assert (job["apiVersion"], job["kind"]) == ("ray.io/v1", "RayJob")
    program, command, *arguments = shlex.split(job["spec"]["entrypoint"])
    assert (program, command) == ("engram", "train")
    settings = compose_settings(arguments, several=False)
    assert ray_settings(settings.tree).workers == 64
    groups = job["spec"]["rayClusterSpec"]["workerGroupSpecs"]
    cores = sum(
        group["replicas"] * int(container["resources"]["requests"]["cpu"])
        for group in groups
        for container in group["template"]["spec"]["containers"]
    )
    assert cores >= ray_settings(settings.tree).cpus
