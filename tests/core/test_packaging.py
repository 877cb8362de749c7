"""The wheel works from any folder and finds its data; so does a checkout."""

from __future__ import annotations

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from metricsd.resources import data_folder

ROOT = Path(__file__).resolve().parents[2]
FOLDERS = ("hooks", "conflict_policies", "systemd", "launchd")


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Build the wheel once, with what is installed (no network)."""
    out = tmp_path_factory.mktemp("dist")
    command = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(out), str(ROOT)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=110, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return next(out.glob("*.whl"))


def test_the_wheel_holds_the_data_folders_and_the_schema_steps(wheel: Path) -> None:
    """Everything that the code opens at run time travels with it, executable bits included."""
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
        mode = archive.getinfo("metricsd/data/hooks/capture").external_attr >> 16
    for folder in FOLDERS:
        shipped = {path.name for path in (ROOT / folder).iterdir()}
        assert shipped, folder
        assert shipped <= {Path(name).name for name in names if name.startswith(f"metricsd/data/{folder}/")}
    assert mode & 0o111
    for step in (ROOT / "metricsd").rglob("schema/**/*.sql"):
        assert str(step.relative_to(ROOT)) in names
    assert "metricsd/py.typed" in names
    assert not any(name.startswith(("tests/", "bench/")) for name in names)


def test_an_installed_wheel_works_from_any_folder(wheel: Path, tmp_path: Path) -> None:
    """Unpacked into an empty folder, it runs and finds its hook; nothing of the checkout is used."""
    target, elsewhere = tmp_path / "site", tmp_path / "elsewhere"
    elsewhere.mkdir()
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(target)
    environment = {
        **os.environ,
        "PYTHONPATH": str(target),
        "METRICSD_HOME": str(tmp_path / "home"),
        "HOME": str(tmp_path),
    }
    code = (
        "import metricsd, sys\n"
        "from metricsd.resources import data_folder\n"
        f"assert metricsd.__file__.startswith({str(target)!r}), metricsd.__file__\n"
        f"print(*(data_folder(name) for name in {FOLDERS!r}))\n"
        "from metricsd.__main__ import main\n"
        "sys.exit(main(['hooks', 'install', '--dry-run']))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=elsewhere,
        env=environment,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    folders = done.stdout.splitlines()[0].split(" ")
    assert all(folder.startswith(str(target)) for folder in folders)
    assert "PostToolUse" in done.stdout


@pytest.mark.parametrize("folder", FOLDERS)
def test_a_checkout_finds_its_data(folder: str) -> None:
    """An editable install uses the folders beside the package."""
    assert data_folder(folder) == ROOT / folder


def test_a_missing_folder_is_a_broken_installation() -> None:
    """The sentence says what to do."""
    with pytest.raises(FileNotFoundError, match="reinstall metricsd"):
        data_folder("nothing")
