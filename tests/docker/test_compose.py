"""compose.yaml: services that write below the mounted results only, on images that `make image` builds."""

import shutil
import subprocess
from typing import Any

import pytest
import yaml

from tests.docker.recipe import DOCKER

FILE = DOCKER / "compose.yaml"
SERVICES: dict[str, dict[str, Any]] = yaml.safe_load(FILE.read_text())["services"]


def test_services() -> None:
    images = {name: service["image"] for name, service in SERVICES.items()}
    assert images == {"bench-cpu": "mnist-dist:cpu", "bench-gpu": "mnist-dist:gpu", "tensorboard": "mnist-dist:cpu"}
    assert SERVICES["bench-cpu"]["command"][:2] == ["bench", "quick"]
    assert SERVICES["tensorboard"]["command"][0] == "tensorboard"


@pytest.mark.parametrize("name", SERVICES)
def test_services_can_only_write_results(name: str) -> None:
    service = SERVICES[name]
    assert service["read_only"] is True and service["cap_drop"] == ["ALL"]
    assert [volume["target"] for volume in service["volumes"]] == ["/results"]
    assert "root" not in service["user"] and not service["user"].startswith("0")


def test_only_the_gpu_service_asks_for_gpus() -> None:
    asking = [name for name, service in SERVICES.items() if "deploy" in service]
    assert asking == ["bench-gpu"]
    (device,) = SERVICES["bench-gpu"]["deploy"]["resources"]["reservations"]["devices"]
    assert device["capabilities"] == ["gpu"] and device["driver"] == "nvidia"


def test_nccl_may_share_and_lock_memory_wherever_gpus_are_asked_for() -> None:
    """Under compose, and in each command that the documentation shows or `make image-test` runs."""
    assert {"shm_size": "1gb", "ulimits": {"memlock": -1}}.items() <= SERVICES["bench-gpu"].items()
    text = (DOCKER / "README.md").read_text().replace("\\\n", "")
    commands = [line for line in text.splitlines() if line.startswith("$ docker run") and "--gpus" in line]
    assert commands and all("--shm-size 1g" in line and "--ulimit memlock=-1" in line for line in commands)
    script = (DOCKER / "test.sh").read_text()
    assert "--shm-size 1g" in script and "options+=(--ulimit memlock=-1)" in script.partition("= gpu ]]")[2]


def test_tensorboard_listens_to_this_machine_only() -> None:
    published = {name: service.get("ports") for name, service in SERVICES.items() if service.get("ports")}
    assert published == {"tensorboard": ["127.0.0.1:6006:6006"]}


@pytest.mark.slow
def test_compose_accepts_the_file() -> None:
    """Compose 2 and newer; version 1 knows neither the project's name nor create_host_path."""
    for command in (["docker", "compose"], ["docker-compose"]):
        if shutil.which(command[0]) is None:
            continue
        version = subprocess.run([*command, "version", "--short"], capture_output=True, text=True, timeout=60)
        if version.returncode == 0 and version.stdout.strip().lstrip("v") >= "2":
            check = [*command, "--file", str(FILE), "config", "--quiet"]
            done = subprocess.run(check, capture_output=True, text=True, timeout=60)
            assert done.returncode == 0, done.stderr
            return
    pytest.skip("there is no Docker Compose 2 or newer here")
