"""What gets installed: pyproject, constraints, environment.yml, Makefile and commit hooks agree."""

import ast
import os
import re
import shutil
import subprocess
import sys
import tomllib
from functools import cache
from importlib.metadata import packages_distributions
from importlib.util import find_spec
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[1]
OURS = "visionpulse_analysis"
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
PROJECT = PYPROJECT["project"]
EXTRAS = PROJECT["optional-dependencies"]
MAKEFILE = (ROOT / "Makefile").read_text()


def package(requirement: str) -> str:
    """The normalised package name of a requirement."""
    match = re.match(r"[A-Za-z0-9._-]+", requirement)
    if match is None:
        raise ValueError(f"not a requirement: {requirement!r}")
    return re.sub(r"[-_.]+", "-", match[0]).lower()


def constraints() -> dict[str, str]:
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    pins = [line.split("==") for line in lines if line and not line.startswith("#")]
    return {package(name): version for name, version in pins}


@cache
def imported() -> dict[str, set[Path]]:
    """The packages that modules of ours import, at their head or in a function, and which modules do."""
    found: dict[str, set[Path]] = {}
    for file in (ROOT / "visionpulse_analysis").rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text("utf-8"))):
            names = [one.name for one in node.names] if isinstance(node, ast.Import) else []
            names += [node.module] if isinstance(node, ast.ImportFrom) and node.module and not node.level else []
            # import_module("av"), as of what only some have; those calls name our own modules by f-strings
            called = isinstance(node, ast.Call) and getattr(node.func, "id", getattr(node.func, "attr", ""))
            if called == "import_module" and isinstance(node.args[0], ast.Constant):
                names.append(str(node.args[0].value))
            for name in names:
                found.setdefault(name.partition(".")[0], set()).add(file)
    return {name: files for name, files in found.items() if name not in {*sys.stdlib_module_names, OURS}}


# Asked for when somebody comes with a GPU, a film, a harness: each has its own error.
NOT_DECLARED = {"triton", "av", "lmms_eval"}
# Started or drawn with by others: dask's dashboard, JupyterLab itself and its widgets, and the kernel's own.
NOT_IMPORTED = {"bokeh", "jupyterlab", "ipywidgets", "seaborn", "accelerate"}


def test_every_package_that_is_imported_is_declared_and_no_other():
    """By the names under which pip knows them: ``PIL`` is of pillow."""
    of_import = packages_distributions()
    needed = {package(of_import[name][0]) for name in set(imported()) - NOT_DECLARED}
    declared = {package(one) for one in [*PROJECT["dependencies"], *EXTRAS["parquet"], *EXTRAS["split"]]}
    assert needed - declared == set()
    assert declared - needed <= NOT_IMPORTED


def test_environment_yml_lists_what_pyproject_lists():
    environment = yaml.safe_load((ROOT / "environment.yml").read_text())
    (pip,) = [entry["pip"] for entry in environment["dependencies"] if isinstance(entry, dict)]
    options = [line for line in pip if line.startswith("-")]
    assert options == ["--constraint constraints.txt", "--editable ."]
    assert [line for line in pip if line not in options] == PROJECT["dependencies"] + EXTRAS["test"]
    assert f"python{PROJECT['requires-python']}" in environment["dependencies"]


def test_every_direct_dependency_is_pinned_within_its_range():
    pins = constraints()
    direct = [
        *PROJECT["dependencies"],
        *EXTRAS["test"],
        *EXTRAS["dev"],
        *EXTRAS["docs"],
        *PYPROJECT["build-system"]["requires"],
    ]
    for requirement in direct:
        if package(requirement) == PROJECT["name"]:
            continue
        floor = re.search(r">=([\d.]+)", requirement)
        assert floor, f"{requirement} has no floor"
        assert package(requirement) in pins, f"{requirement} is not in constraints.txt"
        pinned = [int(part) for part in pins[package(requirement)].split(".")]
        assert pinned >= [int(part) for part in floor[1].split(".")], requirement


def test_the_extras_are_installed_where_the_tests_run():
    """Without one of them, its tests would be skipped and nobody would see."""
    for extra in set(EXTRAS) - {"test", "dev", "docs"}:
        assert set(EXTRAS[extra]) <= set(EXTRAS["test"]), extra
        for requirement in EXTRAS[extra]:
            assert find_spec(package(requirement)), f"{requirement} is not installed: make test"


def test_the_oldest_transformers_allowed_is_the_one_tested():
    floor = (ROOT / "constraints-floor.txt").read_text()
    tested = re.search(r"^transformers==(\d+\.\d+)\.", floor, re.MULTILINE)
    assert tested and f"transformers>={tested[1]},<6" in PROJECT["dependencies"]
    assert "make test-floor" in (ROOT / ".ci/run").read_text()


def test_the_torchvision_compared_with_is_that_of_the_pinned_torch():
    """Their releases go together: torch 2.x with torchvision 0.(x + 15)."""
    named = re.search(r"^torchvision==0\.(\d+)\.", (ROOT / "constraints-torchvision.txt").read_text(), re.MULTILINE)
    torch = re.match(r"2\.(\d+)\.", constraints()["torch"])
    assert named and torch and int(named[1]) == int(torch[1]) + 15
    assert re.search(r"^test-torchvision:", MAKEFILE, re.MULTILINE)


def test_triton_is_needed_by_gpus_only():
    """CI installs it aside for the kernels' tests, and one module imports it, when a GPU asks for it."""
    assert "make test-triton" in (ROOT / ".ci/run").read_text()
    assert "triton" not in str(PROJECT["dependencies"]) + str(EXTRAS) + str(constraints())
    assert {file.name for file in imported()["triton"]} == {"triton_kernels.py"}


def test_no_package_registry_is_named():
    for name in (
        "pyproject.toml",
        "constraints.txt",
        "constraints-floor.txt",
        "constraints-torchvision.txt",
        "constraints-triton.txt",
        "environment.yml",
        "Makefile",
        ".ci/run",
    ):
        text = (ROOT / name).read_text()
        assert not re.search(r"https?:|index-url|find-links|file:", text), name


@pytest.mark.parametrize("target", ["figures", "test", "lab", "docs", "lint", "clean"])
def test_makefile_target(target):
    assert re.search(rf"^{target}:", MAKEFILE, re.MULTILINE)
    phony = re.search(r"^\.PHONY: (.*)$", MAKEFILE, re.MULTILINE)
    assert phony and target in phony[1].split()


def test_makefile_reinstalls_when_the_lists_change():
    assert re.search(r"^\$\(VENV\)/\.installed: pyproject\.toml constraints\.txt", MAKEFILE, re.MULTILINE)
    for target in ("figures", "test", "lab"):
        assert re.search(rf"^{target}: \$\(VENV\)/\.installed$", MAKEFILE, re.MULTILINE), target


def test_commit_hooks_use_the_pinned_tools():
    config = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())
    hooks = [hook for repo in config["repos"] for hook in repo["hooks"]]
    assert {hook["id"] for hook in hooks} == {"ruff-check", "ruff-format", "nbstripout"}
    for hook in hooks:
        assert hook["entry"].startswith(".venv/bin/"), "a hook with its own copy could differ from constraints.txt"
        assert package(hook["entry"].removeprefix(".venv/bin/")) in constraints()


def test_torchvision_is_not_needed():
    """Only `make test-torchvision` installs it, aside: all tests run without it, and no module of ours imports it."""
    assert not any("torchvision" in (ROOT / name).read_text() for name in ("constraints.txt", "environment.yml"))
    assert "torchvision" not in str(PROJECT["dependencies"]) + str(EXTRAS)
    assert "torchvision" not in imported()


KERNELS_IN = "--MappingKernelManager.root_dir"


def test_make_lab_loads_hub_models_and_writes_where_make_figures_does(tmp_path):
    """What the recipe is given, by a jupyter of our own; an answer of the user's stands."""
    shutil.copy(ROOT / "Makefile", tmp_path)
    (tmp_path / ".venv" / "bin").mkdir(parents=True)
    for name in ("pyproject.toml", "constraints.txt", ".venv/bin/python", ".venv/.installed"):
        (tmp_path / name).touch()
    jupyter = tmp_path / ".venv" / "bin" / "jupyter"
    jupyter.write_text("#!/bin/sh\necho $HF_HUB_OFFLINE $*\n")
    jupyter.chmod(0o755)
    free = {name: value for name, value in os.environ.items() if name != "HF_HUB_OFFLINE"}
    for environment, offline in ((free, "0"), ({**free, "HF_HUB_OFFLINE": "1"}, "1")):
        made = subprocess.run(
            ["make", "-s", "lab"], cwd=tmp_path, env=environment, capture_output=True, text=True, check=True
        )
        assert made.stdout == f"{offline} lab notebooks {KERNELS_IN}={tmp_path}\n"


def test_notebooks_of_make_lab_run_in_the_folder_of_the_project(tmp_path):
    from jupyter_server.services.kernels.kernelmanager import MappingKernelManager

    assert MappingKernelManager(root_dir=str(tmp_path)).cwd_for_path("14_playground.ipynb") == str(tmp_path)
