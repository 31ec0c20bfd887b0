"""What a site asks of every job: the defaults in site.yaml, below a file of the user's."""

import os
import re
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, ValidationError

from mnist_dist.config import PositiveInt, Section, explain, read_yaml
from mnist_dist.errors import UserError, nearest
from mnist_dist.files import user_folder

DEFAULTS_FILE = Path(__file__).resolve().with_name("site.yaml")
VARIABLE = "MNIST_DIST_SITE"
TIME, SIZE = r"(\d+-)?\d+(:\d+){0,2}|INFINITE|UNLIMITED", r"\d+([KMGT]B?)?"  # As sbatch(1) has them.


def _check_time(value: Any) -> Any:
    if isinstance(value, int):
        raise ValueError("a time in quotes, such as '01:00:00', since YAML takes a bare one for a number")
    if isinstance(value, str) and not re.fullmatch(TIME, value, re.IGNORECASE):
        raise ValueError("minutes, MM:SS, HH:MM:SS, D-HH, D-HH:MM or D-HH:MM:SS")
    return value


def _check_flag(flag: str) -> str:
    name, equals, value = flag.partition("=")
    if equals and re.fullmatch("--mem(-per-[cg]pu)?", name) and not re.fullmatch(SIZE, value, re.IGNORECASE):
        raise ValueError(f"{name}= with megabytes, or with a size such as 8G")
    return flag if (name, equals) != ("--time", "=") else f"--time={_check_time(value)}"


class Site(Section):
    """See site.yaml, which explains every key and states its default."""

    partition: str | None
    account: str | None
    qos: str | None
    constraint: str | None
    time: Annotated[str, BeforeValidator(_check_time)]
    cpus_per_task: PositiveInt | None
    gpu_flag: Literal["gpus-per-node", "gres", "gpus-per-task"]
    gpu_type: str | None
    modules: list[str]
    venv: str | None
    container_runtime: Literal["apptainer", "pyxis"]
    container_mounts: list[str]
    network_interface: str | None
    sbatch_flags: list[Annotated[str, AfterValidator(_check_flag)]]


def load_site(file: Path | None, flags: Mapping[str, Any], environment: Mapping[str, str]) -> Site:
    """Reads what the site asks for: defaults < file < flags.

    Args:
        file: as given to --site; None for the user's own file, where there is one.
        flags: values by key; None for those that were not given.

    Raises:
        UserError: the file is missing or not YAML, or a key or value is not accepted.
    """
    content = read_yaml(DEFAULTS_FILE.read_text(), source=str(DEFAULTS_FILE))
    known = list(content)
    path = find_site_file(file, environment)
    if path is not None:
        own = read_yaml(_text_of(path), source=str(path))
        for key in own:
            if key not in known:
                raise UserError(
                    f"{path}: {key}: no such setting.{nearest(str(key), known) or f' See {DEFAULTS_FILE}.'}"
                )
        content |= own
    _validated(content, f"{path or DEFAULTS_FILE}: ")  # A flag must not hide a mistake in the file.
    return _validated(content | {key: value for key, value in flags.items() if value is not None}, "--")


def find_site_file(file: Path | None, environment: Mapping[str, str]) -> Path | None:
    if file is not None:
        return file
    if environment.get(VARIABLE):
        return Path(environment[VARIABLE])
    folder = user_folder("XDG_CONFIG_HOME", ".config", environment)
    return folder / "slurm.yaml" if folder and (folder / "slurm.yaml").is_file() else None


def job_environment(site: Site, container: str | None, mounts: list[str]) -> dict[str, str]:
    """Returns the variables that tell the batch files (see lib.sh) where and how their tasks start."""
    variables = {
        "HOME": str(Path(__file__).resolve().parents[1]),
        "VENV": site.venv or (sys.prefix if sys.prefix != sys.base_prefix else ""),
        "MODULES": " ".join(site.modules),
        "INTERFACE": site.network_interface,
        "GPU_FLAG": site.gpu_flag if site.gpu_flag == "gres" else "",
    }
    if container:
        mounted = [mount if ":" in mount else f"{mount}:{mount}" for mount in [*mounts, *site.container_mounts]]
        variables |= {"CONTAINER": container, "CONTAINER_RUNTIME": site.container_runtime, "MOUNTS": ",".join(mounted)}
    return {f"MNIST_DIST_{name}": value for name, value in variables.items() if value}


def sbatch_flags(site: Site) -> list[str]:
    """Returns the site's part of every sbatch command."""
    named = [(name, getattr(site, name)) for name in ("partition", "account", "qos", "constraint", "time")]
    return [f"--{name}={value}" for name, value in named if value] + site.sbatch_flags


def gpu_flag(site: Site, per_node: int) -> str:
    """Returns how a job of as many tasks asks for this many GPUs of each node."""
    kind = f"{site.gpu_type}:" if site.gpu_type else ""
    if site.gpu_flag == "gpus-per-task":
        return f"--gpus-per-task={kind}1"
    return f"--gres=gpu:{kind}{per_node}" if site.gpu_flag == "gres" else f"--gpus-per-node={kind}{per_node}"


def _text_of(path: Path) -> str:
    try:
        return path.expanduser().read_text(encoding="utf-8")
    except (OSError, RuntimeError, UnicodeDecodeError) as error:  # The second where there is no home for a ~.
        reason = os.strerror(error.errno) if isinstance(error, OSError) and error.errno else str(error).rstrip(".")
        raise UserError(f"--site: cannot read '{path}': {reason}; expected a YAML file like {DEFAULTS_FILE}.") from None


def _validated(content: Mapping[str, Any], source: str) -> Site:
    try:
        return Site.model_validate(dict(content))
    except ValidationError as error:
        raise UserError(f"{source}{explain(error)}") from None
