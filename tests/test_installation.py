"""The installation is whole: every package of ours is in it, and requirements.lock has everything that it asks for."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

ROOT = Path(__file__).resolve().parents[1]
LINE = re.compile(r"([a-z0-9-]+)==(\S+) --hash=sha256:[0-9a-f]{64}")


def _locked() -> dict[str, Version]:
    lines = [line for line in (ROOT / "requirements.lock").read_text().splitlines() if not line.startswith("#")]
    found = [LINE.fullmatch(line) for line in lines]
    assert all(found), [line for line, match in zip(lines, found, strict=True) if not match]
    return {match[1]: Version(match[2]) for match in found if match}


UNLOCKED = ("torch",)
"""Extras that `nnloom[dev]` leaves out: gigabytes"""


def _asked(*, locked: bool = False) -> list[Requirement]:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    texts = [*project["project"]["dependencies"], *project["build-system"]["requires"], "pip"]
    extras = project["project"]["optional-dependencies"]
    texts += [text for extra in extras if not locked or extra not in UNLOCKED for text in extras[extra]]
    return [requirement for text in texts if (requirement := Requirement(text)).name != "nnloom"]


def test_the_lock_covers_what_the_installation_asks_for():
    locked = _locked()
    for requirement in _asked(locked=True):
        name = canonicalize_name(requirement.name)
        # The platform of the lock, whatever this one is.
        place = {"platform_system": "Linux", "platform_machine": "x86_64", "sys_platform": "linux"}
        if requirement.marker is None or requirement.marker.evaluate({**place, "python_version": "3.11"}):
            assert name in locked, f"{name} is not in requirements.lock; run 'make lock'"
            assert requirement.specifier.contains(locked[name]), f"{requirement}, but {locked[name]} is locked"


def test_every_dependency_has_bounds():
    for requirement in _asked():
        operators = {specifier.operator for specifier in requirement.specifier}
        free = requirement.name in ("pip", "setuptools", "packaging")
        assert "==" in operators or {">=", "<"} <= operators or free, f"{requirement} has no upper or lower bound"


def test_every_folder_with_modules_is_installed():
    """An editable installation finds a folder that is missing here; a wheel does not."""
    setuptools = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]
    folders = {name: ROOT / folder for name, folder in setuptools["package-dir"].items()}
    found = set()
    for name, top in folders.items():
        for folder in [top, *(path for path in top.rglob("*") if path.is_dir())]:
            if any(folder.glob("*.py")):
                found.add(".".join([name, *folder.relative_to(top).parts]))
    assert found == set(setuptools["packages"])
    data = {file for top in folders.values() for file in top.rglob("*") if file.is_file()}
    listed = set()
    for package, patterns in setuptools["package-data"].items():
        top = max((name for name in folders if f"{package}.".startswith(f"{name}.")), key=len)
        folder = folders[top].joinpath(*package.removeprefix(top).strip(".").split("."))
        for pattern in patterns:
            found = set(folder.glob(pattern))
            assert found, f"{package}: nothing is called {pattern}"
            listed |= found
    assert {file for file in data if file.suffix not in (".py", ".pyc")} == listed
