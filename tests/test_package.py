"""What is installed is whole: built as a source archive and as a wheel of it, and used far from the sources."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

import visionpulse_analysis as vpa
from visionpulse_analysis._util import files
from visionpulse_analysis.cli import app
from visionpulse_analysis.cli.notebooks import run as notebooks

ROOT = Path(__file__).resolve().parents[1]
HEAVY = {
    "torch", "transformers", "pandas", "matplotlib", "xarray", "zarr", "scipy", "tqdm", "dask", "distributed",
    "papermill", "nbformat", "nbclient", "jupyter_client", "IPython", "anywidget", "traitlets", "yaml", "jinja2",
}  # fmt: skip


@pytest.fixture(scope="module")
def installed(tmp_path_factory):
    """A folder that pip installed the package into, by way of a source archive of a copy of the sources."""
    folder = tmp_path_factory.mktemp("package")
    sources = folder / "sources"
    left_out = shutil.ignore_patterns("__pycache__", ".*", "runs")
    for name in ("visionpulse_analysis", "data", "notebooks"):
        shutil.copytree(ROOT / name, sources / name, ignore=left_out)
    for name in ("pyproject.toml", "setup.py", "MANIFEST.in", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, sources)
    make = "from setuptools.build_meta import build_sdist; build_sdist('..')"
    subprocess.run([sys.executable, "-c", make], cwd=sources, check=True, capture_output=True)
    [archive] = folder.glob("*.tar.gz")
    shutil.unpack_archive(archive, folder)
    unpacked = folder / archive.name.removesuffix(".tar.gz")
    stale = unpacked / "build" / "lib" / "visionpulse_analysis" / "left_by_an_earlier_build.py"
    stale.parent.mkdir(parents=True)
    stale.touch()
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index", "--no-compile"]
    pip += ["--no-build-isolation", "--disable-pip-version-check", "--target", str(folder / "target"), str(unpacked)]
    subprocess.run(pip, check=True, capture_output=True)
    return folder / "target"


def far_away(installed, folder, *words):
    """What a Python prints that has the installed package and runs in an empty folder."""
    folder.mkdir()
    kept = {name: value for name, value in os.environ.items() if not name.startswith("VISIONPULSE_")}
    environment = kept | {"PYTHONPATH": str(installed), "XDG_CACHE_HOME": str(folder.parent / "caches")}
    done = subprocess.run([sys.executable, *words], cwd=folder, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_an_installed_package_holds_what_it_needs_and_no_more(installed):
    package = installed / "visionpulse_analysis"
    for folder in ("data", "notebooks"):
        there = {path.relative_to(ROOT / folder) for path in (ROOT / folder).rglob("*") if path.is_file()}
        needed = {path for path in there if not any(p.startswith(".") for p in path.parts)}
        inside = package / "bundled" / folder
        assert {path.relative_to(inside) for path in inside.rglob("*") if path.is_file()} == needed
    code = {path.relative_to(ROOT / "visionpulse_analysis") for path in (ROOT / "visionpulse_analysis").rglob("*.*")}
    kinds = (".py", ".js", ".css", ".html", ".mplstyle")
    inside = {path.relative_to(package) for path in package.rglob("*.*")}
    assert {path for path in inside if path.suffix in kinds} == {path for path in code if path.suffix in kinds}


def test_an_installed_package_draws_its_figures_and_works_in_an_empty_folder(installed, tmp_path):
    here = tmp_path / "empty"
    done = json.loads(far_away(installed, here, "-m", "visionpulse_analysis", "figures", "00", "--fast", "--json"))
    assert (here / "figures" / "fast" / "00_quickstart.png").exists()
    [notebook] = done["notebooks"]
    assert Path(notebook["executed"]) == here / "figures" / "fast" / "executed" / "00_quickstart.ipynb"
    assert [path.name for path in here.iterdir()] == ["figures"]  # caches lie elsewhere
    told = "import visionpulse_analysis as vpa; print(vpa.load('charts').weights_hash)"
    assert far_away(installed, tmp_path / "charts", "-c", told).strip() == vpa.load("charts").weights_hash
    told = "import visionpulse_analysis.cli as c; print(c.__file__); c.app(['notebooks'], standalone_mode=False)"
    printed = far_away(installed, tmp_path / "other", "-c", told).splitlines()
    assert Path(printed[0]).is_relative_to(installed)
    copied = {path.name: path.read_bytes() for path in (tmp_path / "other" / "notebooks").iterdir()}
    source = [*(ROOT / "notebooks").glob("*.ipynb"), ROOT / "data" / "example.png"]
    assert copied == {path.name: path.read_bytes() for path in source}


@pytest.mark.parametrize("words", [["--version"], ["-m", "visionpulse_analysis", "--version"]])
def test_the_version(words):
    if words[0] == "-m":
        said = subprocess.run([sys.executable, *words], capture_output=True, text=True, check=True).stdout
    else:
        said = CliRunner().invoke(app, words).stdout
    assert said == f"visionpulse {vpa.__version__}\n"


def mistakes(folder: Path) -> list[list[str]]:
    """Command lines with one thing wrong in each, which no model is needed to find."""
    empty, broken, picture = folder / "empty", folder / "no picture.png", str(ROOT / "data" / "example.png")
    empty.mkdir()
    broken.write_text("words")
    sweeps = {
        "malformed": "out: [",
        "unknown key": "out: x\nsamples: {scenes: {n: 3}}\nfoo: 3\n",
        "pruner": "out: x\nsamples: {scenes: {n: 3}}\npruners: [visionplse]\n",
        "pruner parameter": "out: x\nsamples: {scenes: {n: 3}}\npruners: [{name: fastv, budget: 2.0}]\n",
        "sampling": "out: x\nsamples: {scenes: {n: 3}}\ndecode: {sample: {temperature: -1.0}}\n",
        "pictures": f"out: x\nsamples: {{folder: {{path: {folder / 'none'}, question: why ?}}}}\n",
        "model": f"out: x\nsamples: {{scenes: {{n: 3}}}}\nmodels: [{folder / 'none'}]\n",
    }
    for name, text in sweeps.items():
        (folder / f"{name}.yaml").write_text(text)
    asked, missing = ["decode", picture, "a question ?"], str(folder / "none")
    return [
        *(["sweep", str(folder / f"{name}.yaml")] for name in sweeps),
        ["decode", str(broken), "a question ?"],
        *([*asked, "--model", model] for model in (missing, str(empty), str(broken), "no/such-model")),
        *([*asked, *words] for words in (
            ["--pruner", "visionplse"], ["--pruner", "visionpulse", "-p", "bugdet=0.1"], ["--pruner", "visionpulse:3"],
            ["--pruner", "visionpulse(budget=3)"], ["--pruner", "fastv | none"], ["-p", "budget=0.1"],
            ["--layers", "none-such"], ["--heads", "1,x"], ["--execution", "quickly"], ["--temperature", "-1"],
            ["--device", "gpu"], ["--device", "cuda:x"], ["--dtype", "float31"], ["--record", "none-such"],
            ["--record", "mass"], ["--temperature", "1", "--top-p", "2"], ["--min-pixels", "9", "--max-pixels", "4"],
        )),
        ["compare", picture, "a question ?", "--pruners", "random,visionplse"],
        ["compare", picture, "a question ?", "--pruners", "random(bugdet=0.1)"],
        *(["compare", picture, "a question ?", "--pruners", "random", "--model", model] for model in (missing,)),
        ["check", missing],
        ["evaluate", "--model", missing],
        ["train", "--start", missing],
        ["train", "--head", "covipl"],
        ["train", "--device", "gpu"],
        ["bench", "sharing", "--model", missing],
        ["bench", "endurance", "--model", missing],
        ["bench", "decode", "--size", "huge"],
        ["bench", "decode", "--variant", "fastest"],
        ["bench", "decode", "--device", "gpu"],
        ["bench", "end-to-end", "--variant", "fastest"],
        ["figures", "00", "-p", f"model={missing}"],
        ["figures", "00", "-p", f"image={missing}"],
        ["figures", "-p", f"model={missing}"],
        ["lmms-eval", "--store", missing, "--pruner", "visionplse", "--", "--model", "x"],
        *([command, missing] for command in ("explore", "pictures", "provenance")),
        ["explore", str(empty)],
        ["explore", str(broken)],
        ["export", missing, str(folder / "steps.csv")],
        ["import", missing, "--store", str(folder / "theirs")],
    ]  # fmt: skip


LOOK = """
import json, sys
from typer.testing import CliRunner
from visionpulse_analysis.cli import app
for words, exit_code, heavy in json.loads(sys.argv[1]):
    result = CliRunner().invoke(app, words)
    print(json.dumps([words, result.exit_code, sorted(set(heavy) & {name.partition(".")[0] for name in sys.modules})]))
"""


def test_help_and_mistakes_are_answered_before_anything_heavy_is_imported(tmp_path):
    missing = str(tmp_path / "none")
    asked = [
        (["--help"], 0, HEAVY),
        (["--version"], 0, HEAVY),
        (["decode", "--help"], 0, HEAVY),
        (["decode", "--no-such-option"], 2, HEAVY),
        (["no-such-command"], 2, HEAVY),
        (["quantities"], 0, HEAVY),
        (["figures", "no_such_notebook"], 2, HEAVY),
        (["figures", "00", "-p", "no_such_parameter=1"], 2, HEAVY),
        (["figures", "-p", "no_such_parameter=1"], 2, HEAVY),
        (["notebooks", str(notebooks.FOLDER)], 2, HEAVY),
        (["sweep", missing], 2, HEAVY),
        (["decode"], 2, HEAVY),
        (["decode", "a question ?"], 2, HEAVY),
        (["decode", "a.png", "a question ?", "--top-p", "0.5"], 2, HEAVY),
        (["compare", "a.png", "a question ?", "--pruners", "random", "--judge", "words"], 2, HEAVY),
        (["train", "--world", "none"], 2, HEAVY),
        (["evaluate", "--card", "--limit", "1"], 2, HEAVY),
        (["decode", missing, "a question ?"], 2, HEAVY),
        (["compare", missing, "a question ?", "--pruners", "random"], 2, HEAVY),
        (["explore", missing], 2, {"torch", "transformers", "matplotlib", "IPython"}),
    ]
    asked += [(words, 2, {"torch", "transformers", "IPython"}) for words in mistakes(tmp_path)]
    told = json.dumps([[words, code, sorted(heavy)] for words, code, heavy in asked])
    done = subprocess.run([sys.executable, "-c", LOOK, told], capture_output=True, text=True, check=True, cwd=tmp_path)
    assert [json.loads(line) for line in done.stdout.splitlines()] == [[words, code, []] for words, code, _ in asked]


def test_notebooks_are_copied_and_what_somebody_changed_is_kept(tmp_path):
    folder = tmp_path / "mine"
    run = CliRunner().invoke
    first = json.loads(run(app, ["notebooks", str(folder), "--json"]).stdout)
    names = {path.name for path in notebooks.list_notebooks()} | {"example.png"}
    assert {Path(path).name for path in first["written"]} == names == {path.name for path in folder.iterdir()}
    assert json.loads(run(app, ["notebooks", str(folder), "--json"]).stdout) == {"written": []}

    changed = folder / "00_quickstart.ipynb"
    changed.write_text("mine")
    (folder / "example.png").unlink()
    refused = run(app, ["notebooks", str(folder)])
    assert refused.exit_code == 2 and f"{changed} would be replaced; nothing was written" in refused.stderr
    assert changed.read_text() == "mine" and not (folder / "example.png").exists()
    replaced = run(app, ["notebooks", str(folder), "--overwrite"])
    assert replaced.stdout.splitlines() == [f"wrote {changed}", f"wrote {folder / 'example.png'}"]
    assert changed.read_bytes() == (notebooks.FOLDER / changed.name).read_bytes()
    assert run(app, ["notebooks", str(notebooks.FOLDER)]).exit_code == 2
    assert not (notebooks.FOLDER / "example.png").exists()


def test_caches_are_the_user_s(tmp_path, monkeypatch):
    monkeypatch.delenv("VISIONPULSE_CACHE", raising=False)
    if sys.platform.startswith("linux"):
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
        assert files.cache_folder() == tmp_path / "xdg" / "visionpulse_analysis"
        monkeypatch.delenv("XDG_CACHE_HOME")
    assert not files.cache_folder().is_relative_to(ROOT)
    monkeypatch.setenv("VISIONPULSE_CACHE", str(tmp_path / "named"))
    assert files.cache_folder() == tmp_path / "named"
