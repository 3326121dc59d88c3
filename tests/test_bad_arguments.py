"""Bad arguments of the public interface: one error that says what was given and what is expected, before anything."""

from __future__ import annotations

import re

import numpy as np
import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

import visionpulse_analysis as vpa
from visionpulse_analysis.cli import app
from visionpulse_analysis.decoding.sampling import Sample
from visionpulse_analysis.experiments.bench.decode import bench_decode
from visionpulse_analysis.experiments.bench.recording import bench_recording
from visionpulse_analysis.figures import read_provenance
from visionpulse_analysis.media.images import read_image
from visionpulse_analysis.models import finding
from visionpulse_analysis.testbed import heads
from visionpulse_analysis.testbed.heads import catalogue

ASK = "what is here ?"


@pytest.mark.parametrize(
    ("name", "given", "said"),
    [
        ("visionpulse", {"temperature": 1e-40}, "temperature must be above 0 .from 1e-30 to .*, got 1e-40"),
        ("visionpulse", {"temperature": 1e40}, "temperature must be above 0 .from .* to 1e.30., got 1e.40"),
        ("visionpulse", {"temperature": "a"}, "temperature must be a finite number, got 'a'"),
        ("visionpulse", {"hysteresis": "a"}, "hysteresis must be a finite number, got 'a'"),
        ("visionpulse", {"hysteresis": 1e40}, "hysteresis must be 0 or above"),
        ("visionpulse", {"reuse_previous": "x"}, "reuse_previous must be True or False, got 'x'"),
        ("visionpulse", {"reuse_previous": 3}, "reuse_previous must be True or False, got 3"),
        ("visionpulse", {"block_size": 1.5}, "block_size must be a whole number, got 1.5"),
        ("visionpulse(temperature=a)", {}, "a pruner is written name, name"),
        ("visionpulse(temperature='a')", {}, "temperature must be a finite number, got 'a'"),
        ("fastv", {"layer": 1.5}, "layer must be a whole number, got 1.5"),
        ("fastv", {"rope": "no"}, "rope must be True or False, got 'no'"),
        ("pyramiddrop", {"layers": ["2"]}, "layers must be a list, each a whole number or None, got"),
        ("sparsevlm", {"shares": 0.5}, "shares must be a list, each a finite number, got 0.5"),
        ("st3", {"horizon": None}, "horizon must be a whole number, got None"),
        ("visipruner", {"exit_threshold": float("nan")}, "exit_threshold must be a finite number, got nan"),
        ("vtw", {"layer": "3"}, "layer must be a whole number or None, got '3'"),
        ("dycoke", {"threshold": "a"}, "threshold must be a finite number, got 'a'"),
        (None, {}, "a pruner is named by a text, one of .*visionpulse.*; got None"),
    ],
)
def test_pruners(name, given, said):
    with pytest.raises(ValueError, match=said):
        vpa.make_pruner(name, **given)


def test_numbers_of_numpy_are_python_s_in_a_pruner():
    pruner = vpa.VisionPulse(temperature=np.float32(0.5), anchor_layer=np.int64(2))  # pyright: ignore[reportArgumentType]
    assert (type(pruner.temperature), type(pruner.anchor_layer)) == (float, int)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"temperature": 1e-320}, "temperature must be above 0 .from 1e-30"),
        ({"temperature": float("inf")}, "temperature must be a finite number, got inf"),
        ({"temperature": "a"}, "temperature must be a finite number, got 'a'"),
        ({"top_k": 1.5}, "top_k must be a whole number or None, got 1.5"),
        ({"top_p": "a"}, "top_p must be a finite number, got 'a'"),
    ],
)
def test_samples(given, said):
    with pytest.raises(ValueError, match=said):
        Sample(**given)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"pruner": "visionpulse"}, r"pruner must be .* got 'visionpulse'; say vpa\.make_pruner\('visionpulse'\)"),
        ({"pruner": vpa.VisionPulse}, r"say VisionPulse\(\), an instance"),
        ({"pruner": 3}, r"pruner must be .* got 3; say vpa\.make_pruner"),
        ({"sample": True}, r"sample must be a Sample or None, got True; .*sample=Sample\(temperature=1\.0\)"),
        ({"sample": {"temperature": 1.0}}, "sample must be a Sample or None, got {"),
        ({"store": "path"}, r"store must be .* got 'path'; say vpa\.TraceStore\(path, mode='a'\)"),
        ({"layers": None}, "layers must be 'all', 'anchor', 'none', an int or a list of int, got None"),
        ({"layers": [float("nan")]}, "every entry of layers must be a whole number, got nan"),
        ({"layers": [1.5]}, "every entry of layers must be a whole number, got 1.5"),
        ({"layers": ["3"]}, "every entry of layers must be a whole number, got '3'"),
        ({"layers": True}, "every entry of layers must be a whole number, got True"),
        ({"heads": -1}, "heads must be 'mean', 'all' or a list of int, got -1"),
        ({"heads": None}, "heads must be 'mean', 'all' or a list of int, got None"),
        ({"heads": [0.5]}, "every entry of heads must be a whole number, got 0.5"),
        ({"question": None}, "question must be a text or a list of texts, got None"),
        ({"question": b"x"}, "question must be a text or a list of texts, got b'x'"),
        ({"ids": 3}, "ids must be a name, or a list of names, one per question, got 3"),
        ({"ids": [3]}, r"ids must be a name, or a list of names, one per question, got \[3\]"),
        ({"max_new_tokens": "5"}, "max_new_tokens must be a whole number, got '5'"),
        ({"max_new_tokens": float("nan")}, "max_new_tokens must be a whole number, got nan"),
        ({"max_new_tokens": 5.0}, "max_new_tokens must be a whole number, got 5.0"),
        ({"max_new_tokens": True}, "max_new_tokens must be a whole number, got True"),
        ({"batch_size": "2"}, "batch_size must be a whole number, got '2'"),
        ({"seed": "a"}, "seed must be a whole number, got 'a'"),
        ({"seed": 1.5}, "seed must be a whole number, got 1.5"),
        ({"seed": None}, "seed must be a whole number, got None"),
        ({"seed": 10**30}, "seed must be at most"),
        ({"seed": [-(10**30)]}, "seed must be at least"),
        ({"image": Image.new("RGB", (0, 5))}, "the image has 0 x 5 pixels"),
        ({"vlm": "scenes"}, r"vlm must be a model, as vpa\.load gives one, got 'scenes'"),
    ],
    ids=lambda value: repr(value).partition(" at 0x")[0][:60] if isinstance(value, dict) else "",
)
def test_decode(vlm, pictures, given, said):
    with pytest.raises(ValueError, match=said):
        vpa.decode(**{"vlm": vlm, "image": pictures[0], "question": ASK, "max_new_tokens": 1, **given})


@pytest.mark.parametrize("given", [{"layers": np.int64(2)}, {"layers": np.array([2])}, {"seed": np.int64(-3)}])
def test_numbers_of_numpy_are_whole_numbers(vlm, pictures, given):
    pruner = vpa.make_pruner("random")
    trace = vpa.decode(vlm, pictures[0], ASK, pruner=pruner, max_new_tokens=np.int64(2), **given)  # pyright: ignore[reportArgumentType]
    assert len(trace) == 2 and trace.meta["seed"] in (0, -3)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"device": "foo"}, "device 'foo' cannot be used on this machine: expected cpu, or cuda or mps"),
        ({"device": 3}, "device 3 cannot be used on this machine"),
        ({"device": "meta"}, "device 'meta' cannot be used on this machine"),
        ({"dtype": "float99"}, "dtype must be auto, float32, bfloat16 or float16, got 'float99'"),
        ({"dtype": torch.int8}, r"dtype must be .* got torch\.int8"),
        ({"dtype": 3}, "dtype must be .* got 3"),
        ({"name": 3}, "a model is named by a text .* got 3"),
    ],
)
def test_load(scenes_folder, given, said):
    with pytest.raises(ValueError, match=said):
        vpa.load(**{"name": str(scenes_folder), **given})


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is CUDA")
def test_load_without_cuda(scenes_folder):
    with pytest.raises(ValueError, match="device 'cuda' cannot be used on this machine"):
        vpa.load(str(scenes_folder), device="cuda")


@pytest.fixture(scope="module")
def trace(vlm, pictures):
    return vpa.decode(vlm, pictures[0], ASK, layers="anchor", max_new_tokens=2, ids="one")


def test_what_is_no_trace_and_no_step(trace):
    with pytest.raises(ValueError, match=r"costs_of takes a Trace, .* got 3"):
        vpa.costs_of(3)
    with pytest.raises(ValueError, match=r"explore takes traces, .* got 3"):
        vpa.explore(3)
    with pytest.raises(ValueError, match=r"explore takes traces, .* got 'x'"):
        vpa.explore(trace, "x")
    for step in ("x", 0.0, None, True):
        with pytest.raises(IndexError, match=rf"step {step!r} is out of range: this trace has steps 0\.\.1"):
            trace.at(step)


def test_files_that_are_none(tmp_path):
    for read in (read_image, read_provenance):
        with pytest.raises(FileNotFoundError, match=r"^no (image|figure) at .*folder|^no figure at .*; name a PNG"):
            read(tmp_path)
    with pytest.raises(FileNotFoundError, match="no image at '': the path is empty"):
        read_image("")
    with pytest.raises(FileNotFoundError, match=r"no figure at .*nope\.png; name a PNG, PDF or SVG"):
        read_provenance(tmp_path / "nope.png")


@pytest.mark.parametrize("given", [{"rounds": 0}, {"rounds": -2}, {"visual_tokens": [0]}, {"rounds": 1.5}])
@pytest.mark.parametrize("bench", [bench_decode, bench_recording])
def test_benchmarks(bench, given, monkeypatch):
    for module in ("decode.random_language_model", "recording.random_vlm"):
        monkeypatch.setattr(
            f"visionpulse_analysis.experiments.bench.{module}", lambda *a: pytest.fail("it began to measure")
        )
    with pytest.raises(ValueError, match=f"{next(iter(given))} must be (at least 1|a whole number), got"):
        bench(**given)


@pytest.mark.parametrize(
    "words",
    [
        *(["decode", option] for option in ("--rounds", "--visual-tokens", "--batch")),
        *(["batch", option] for option in ("--rounds", "--samples", "--batch")),
        *(["recording", option] for option in ("--rounds", "--steps", "--visual-tokens")),
        *(["store", option] for option in ("--traces", "--reads")),
        *(["sweep", option] for option in ("--samples", "--cells")),
        ["endurance", "--decodes"],
    ],
    ids=" ".join,
)
@pytest.mark.parametrize("number", ["0", "-2"])
def test_commands_that_measure(words, number):
    result = CliRunner().invoke(app, ["bench", *words, number])
    assert result.exit_code == 2 and f"Invalid value for '{words[1]}'" in result.stderr


@pytest.fixture
def command(tmp_path, trace, pictures, scenes_folder):
    """Run a command in a folder with a store S, a saved trace T and a picture p.png; its one line of error."""
    store = vpa.TraceStore(tmp_path / "S", mode="a")
    store.add(trace)
    trace.save(tmp_path / "T")
    Image.fromarray(pictures[0]).save(tmp_path / "p.png")
    places = {name: str(tmp_path / name) for name in ("S", "T", "p.png", "none", "none/x.csv", "out.html")}
    places["model"] = str(scenes_folder)

    def run(*words: str) -> str:
        result = CliRunner().invoke(app, [places.get(word, word) for word in words])
        return result.stderr.strip() if result.exit_code else ""

    return run


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["export", "S", "none/x.csv"], "Errno 2. cannot write .there is no folder .*none.; make the folder first"),
        (["export", "none", "none/x.csv"], "no trace store at .*none, nor a saved trace; decode --store makes one"),
        (["export", "T", "none/x.csv", "--sample", "two"], "no trace 'two' in .*T; choose with --sample: one"),
        (["explore", "none"], "no trace store at .*none, nor a saved trace; decode --store makes one"),
        (["explore", "S", "--sample", "two"], "no trace 'two' in .*S; choose with --sample: one"),
        (["decode", "p.png", ASK, "--temperature", "0"], r"leave sample \(--temperature\) out"),
        (["decode", "p.png", ASK, "--model", "model", "--seed", str(10**30)], "seed must be at most"),
        (["decode", "p.png", ASK, "--store", "S", "--id", "one"], "trace 'one' exists in .*S; choose another --id"),
        (["decode", "p.png", ASK, "--model", "model", "--device", "foo"], "device 'foo' cannot be used"),
        (["decode", "none", ASK, "--model", "model"], "^error: no image at .*none"),
        (["decode", "p.png", ASK, "--model", "model", "--pruner", "nope"], "^error: no pruner 'nope'"),
        (["train", "--folder", "none", "--device", "foo"], "^error: device 'foo' cannot be used on this machine"),
        (["decode", "p.png", ASK, "--model", "model", "--pruner", "visionpulse(temperature=a)"], "is written name"),
        (["decode", "p.png", ASK, "--model", "model", "--pruner", "visionpulse", "-p", "temperature=a"], "got .a."),
        (["evaluate", "--limit", "0"], "Invalid value for '--limit'"),
        (["explore", "T", "--out", "out.html"], "^$"),
    ],
    ids=lambda value: " ".join(value[:4]) if isinstance(value, list) else "",
)
def test_commands(command, words, said):

    error = command(*words)
    assert re.search(said, error) and "Traceback" not in error


def test_what_is_told_before_torch_is_what_torch_says():
    with pytest.raises(RuntimeError) as told:
        torch.device("gpu")
    kinds = set(str(told.value).partition("one of ")[2].partition(" device type")[0].split(", "))
    assert "cuda" in kinds and kinds <= {*finding.DEVICES, torch._C._get_privateuse1_backend_name()}
    floats = {name for name, kind in vars(torch).items() if isinstance(kind, torch.dtype) and kind.is_floating_point}
    assert {name for name in floats if not name.startswith(("float8", "float4"))} == {*finding.DTYPES} - {"auto"}
    finding.check_names("float8_e5m2", "cuda:1")
    assert heads.HEADS == (*catalogue.COVIPAL, *catalogue.RELEVANCE, *catalogue.EXITS)
