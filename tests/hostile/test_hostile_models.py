"""Untrusted model folders: no pickle is opened and no code is run, unless the code was asked for by name."""

import ast
import json
import pickle
import shutil
import sys
from dataclasses import asdict
from pathlib import Path

import nbformat
import pytest
import torch
from PIL import Image
from typer.main import get_command
from typer.testing import CliRunner

import visionpulse_analysis as vpa
from visionpulse_analysis.cli import app
from visionpulse_analysis.cli.base import LOADING, PROMPTING
from visionpulse_analysis.cli.notebooks import run as notebooks
from visionpulse_analysis.cli.notebooks.parameters import read_parameters
from visionpulse_analysis.experiments.sweeps import worker
from visionpulse_analysis.experiments.sweeps.config import Model
from visionpulse_analysis.models import loading as models
from visionpulse_analysis.models.families import UnsupportedModelError

PACKAGE = Path(vpa.__file__).parent


@pytest.fixture
def folder(scenes_folder, tmp_path, monkeypatch):
    """A copy of a good model, and a terminal at which nobody answers."""
    monkeypatch.setattr("builtins.input", lambda *_: pytest.fail("asked at the terminal"))
    monkeypatch.setenv("HF_HOME", str(tmp_path / "home"))
    return Path(shutil.copytree(scenes_folder, tmp_path / "model"))


def edit(file: Path, **change) -> None:
    file.write_text(json.dumps({**json.loads(file.read_text()), **change}))


class Touches:
    """Unpickling this makes a file."""

    def __init__(self, marker: Path):
        self.marker = marker

    def __reduce__(self):
        return (Path.touch, (self.marker,))


def test_pickled_weights_are_not_opened(folder):
    (folder / "model.safetensors").unlink()
    marker = folder.parent / "marker"
    torch.save({"weight": Touches(marker)}, folder / "pytorch_model.bin")
    (folder / "vocab.pkl").write_bytes(pickle.dumps(Touches(marker)))
    with pytest.raises(ValueError, match="cannot be read"):
        vpa.load(str(folder))
    assert not marker.exists()


def own_code(folder: Path, module: str, body: str) -> Path:
    marker = folder.parent / "marker"
    (folder / f"{module}.py").write_text(f"from pathlib import Path\nPath({str(marker)!r}).touch()\n{body}")
    return marker


CONFIG = """
from transformers import PretrainedConfig
class OwnConfig(PretrainedConfig):
    model_type = "own"
"""


def test_code_of_an_unknown_architecture_is_run_only_when_asked_for(folder, monkeypatch):
    marker = own_code(folder, "configuration_own", CONFIG)
    edit(folder / "config.json", model_type="own", auto_map={"AutoConfig": "configuration_own.OwnConfig"})
    with pytest.raises(ValueError, match=r"Python code of its own.*load\(\.\.\., trust_remote_code=True\)"):
        vpa.load(str(folder))
    assert not marker.exists()
    monkeypatch.setattr(sys, "path", list(sys.path))
    with pytest.raises(UnsupportedModelError):  # it was run, and is no family that we know
        vpa.load(str(folder), trust_remote_code=True)
    assert marker.exists()


@pytest.mark.parametrize("words", [("decode", "PICTURE", "where ?", "--model"), ("check",), ("evaluate", "--model")])
def test_commands_run_code_of_a_model_only_when_asked_to(folder, pictures, monkeypatch, words):
    marker = own_code(folder, "configuration_own", CONFIG)
    edit(folder / "config.json", model_type="own", auto_map={"AutoConfig": "configuration_own.OwnConfig"})
    Image.fromarray(pictures[0]).save(folder.parent / "scene.png")
    words = [str(folder.parent / "scene.png") if word == "PICTURE" else word for word in (*words, str(folder))]
    monkeypatch.setattr(sys, "path", list(sys.path))
    refused = CliRunner().invoke(app, words)
    assert refused.exit_code == 2 and "--trust-remote-code on the command line" in refused.stderr
    assert not marker.exists()
    asked = CliRunner().invoke(app, [*words, "--trust-remote-code"])
    assert asked.exit_code == 2 and marker.exists()  # it was run, and is no family that we know


def test_every_command_with_a_model_takes_the_switch():
    commands = get_command(app).commands.values()
    with_model = [command for command in commands if "model" in {param.name for param in command.params}]
    assert len(with_model) >= 3
    assert all("trust_remote_code" in {param.name for param in command.params} for command in with_model)
    loading = [command for command in with_model if "device_map" in {param.name for param in command.params}]
    assert {command.name for command in loading} == {"decode", "compare", "check", "evaluate"}
    assert all(set(LOADING) <= {param.name for param in command.params} for command in loading)


CHOSEN = {"dtype": "float16", "device": "mps", "revision": "v2"}
SAID = {
    "nothing": ([], {}),
    "each": ([part for name, value in CHOSEN.items() for part in (f"--{name}", value)], CHOSEN),
    "a map by name": (["--device-map", "balanced_low_0"], {"device_map": "balanced_low_0"}),
    "a map": (["--device-map", '{"lm_head": 1}'], {"device_map": {"lm_head": 1}}),
    "own code": (["--trust-remote-code"], {"trust_remote_code": True}),
}


@pytest.mark.parametrize("words", ["check own", "bench endurance --model own", "decode a.png ? --model own"])
@pytest.mark.parametrize("said", SAID)
def test_commands_load_a_model_as_they_were_told(monkeypatch, tmp_path, pictures, words, said):
    Image.fromarray(pictures[0]).save(tmp_path / "a.png")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "own").mkdir()
    (tmp_path / "own" / "config.json").write_text("{}")  # a folder without is told before
    asked = []

    def load(name, **options):
        asked.append((name, options))
        raise ValueError("seen enough")

    monkeypatch.setattr(vpa, "load", load)
    written, given = SAID[said]
    assert CliRunner().invoke(app, [*words.split(), *written]).exit_code == 2
    loading = {name: default for name, (_, default) in LOADING.items() if name not in PROMPTING}
    assert asked == [("own", {**loading, "prompt_options": {}, **given})]


@pytest.mark.parametrize("said", ["gpu 0", "[0]", '{"model": 0', "3"])
def test_a_device_map_that_is_neither_a_word_nor_json_is_said(said):
    result = CliRunner().invoke(app, ["check", "--device-map", said])
    assert result.exit_code == 2 and "must be auto, balanced, sequential or a JSON object" in result.stderr


def test_workers_of_a_sweep_load_as_its_file_says(monkeypatch):
    given = []
    monkeypatch.setattr(models, "load", lambda name, **options: given.append((name, options)))
    monkeypatch.setattr(worker, "_ready", {})
    asked = Model("own", label="a", dtype="float16", device="cpu", revision="v2", trust_remote_code=True)
    for model in (Model("own"), asked):
        worker._load(asdict(model), None, "this run")
    usual = {"dtype": "auto", "device": None, "revision": "main", "trust_remote_code": False, "prompt_options": None}
    wanted = {**usual, "dtype": "float16", "device": "cpu", "revision": "v2", "trust_remote_code": True}
    assert given == [("own", usual), ("own", wanted)]


@pytest.mark.parametrize("asked", [False, True])
def test_notebooks_run_code_of_a_model_only_when_asked_to(monkeypatch, asked):
    for file in notebooks.list_notebooks():
        known = read_parameters(nbformat.read(file, 4))
        if "model" in known:
            assert known["trust_remote_code"].default is False, file
            assert "trust_remote_code=trust_remote_code" in file.read_text(), file
    given = []
    monkeypatch.setattr(notebooks, "run", lambda name, values, **_: given.append(values))
    CliRunner().invoke(app, ["figures", "00", *(["--trust-remote-code"] if asked else [])])
    assert given == [{"trust_remote_code": True} if asked else {}]


@pytest.mark.parametrize("file", ["config.json", "preprocessor_config.json", "tokenizer_config.json"])
def test_code_beside_a_known_architecture_is_not_run(folder, file):
    marker = own_code(folder, "own", "class Own: pass\n")
    names = ("AutoConfig", "AutoModelForImageTextToText", "AutoImageProcessor", "AutoProcessor")
    edit(folder / file, auto_map={**dict.fromkeys(names, "own.Own"), "AutoTokenizer": ["own.Own", "own.Own"]})
    try:
        vlm = vpa.load(str(folder))
    except ValueError as error:
        assert "cannot be read" in str(error) or "of its own" in str(error)
    else:
        assert type(vlm.model).__module__.startswith("transformers.")
    assert not marker.exists()


FORBIDDEN_MODULES = {"pickle", "cPickle", "dill", "joblib", "shelve", "marshal", "cloudpickle"}


def calls(tree: ast.AST):
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            yield node, ast.unparse(node.func), {k.arg: ast.unparse(k.value) for k in node.keywords}


def loader_is_safe(tree: ast.AST, call: ast.Call) -> bool:
    """Whether the loader is yaml.SafeLoader, or a class of the same file that is one."""
    safe = {
        n.name for n in ast.walk(tree) if isinstance(n, ast.ClassDef) and "yaml.SafeLoader" in map(ast.unparse, n.bases)
    }
    return len(call.args) == 2 and ast.unparse(call.args[1]) in {"yaml.SafeLoader", *safe}


@pytest.mark.parametrize("file", sorted(PACKAGE.rglob("*.py")), ids=lambda file: str(file.relative_to(PACKAGE)))
def test_the_package_opens_no_pickle_and_runs_no_text(file):
    tree = ast.parse(file.read_text("utf-8"))
    imported = {alias.name.split(".")[0] for n in ast.walk(tree) if isinstance(n, ast.Import) for alias in n.names}
    imported |= {(n.module or "").split(".")[0] for n in ast.walk(tree) if isinstance(n, ast.ImportFrom)}
    assert not imported & FORBIDDEN_MODULES
    for call, name, keywords in calls(tree):
        assert name not in ("eval", "exec", "torch.save", "os.system"), name
        if name == "yaml.load":
            assert loader_is_safe(tree, call), "yaml.load without a SafeLoader"
        if name in ("np.load", "numpy.load"):
            assert keywords.get("allow_pickle") == "False"
        if name == "torch.load":
            assert keywords.get("weights_only") == "True"
        if name.endswith(".extractall") or keywords.get("shell") == "True":
            raise AssertionError(f"{name}({keywords})")
