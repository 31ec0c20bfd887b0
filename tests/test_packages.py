import sys
from pathlib import Path

import pytest

from mnist_dist.packages import TENSORFLOW, find_package


def install(folder: Path, package: str, version: str, module: str) -> None:
    """Lays down what pip leaves of a package."""
    (folder / module).mkdir(parents=True)
    (folder / module / "__init__.py").touch()
    metadata = folder / f"{package.replace('-', '_')}-{version}.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {package}\nVersion: {version}\n")
    (metadata / "RECORD").write_text(f"{module}/__init__.py,,\n{metadata.name}/METADATA,,\n")


@pytest.mark.parametrize("package", ["tensorflow", "tensorflow-cpu", "tf-nightly"])
def test_a_module_is_found_under_each_name_of_its_package(
    package: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    install(tmp_path, package, "2.21.0", module="tensorflow")
    monkeypatch.delitem(sys.modules, "tensorflow", raising=False)
    monkeypatch.setattr("sys.path", [str(tmp_path)])
    assert find_package(*TENSORFLOW) == (package, "2.21.0")


def test_what_is_not_there_or_broken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert find_package("no_such_package", "nor-this-one") is None
    (tmp_path / "half_installed-1.0.dist-info").mkdir()
    (tmp_path / "half_installed-1.0.dist-info" / "METADATA").write_text("Metadata-Version: 2.1\nName: half-installed\n")
    monkeypatch.syspath_prepend(tmp_path)
    assert find_package("half_installed") == ("half_installed", "unknown")
