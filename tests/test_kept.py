"""What is kept is found only where the same thing would run: whatever takes part and changes is decoded again."""

import array
import contextlib
import copy
import dataclasses
import json
import logging
import math
import operator
import os
import random
import shutil
import statistics
import struct
import subprocess
import sys
import textwrap
import types
from pathlib import Path
from typing import Any

import nbclient
import nbformat
import numpy as np
import pytest
import torch

import visionpulse_analysis as vpa
from visionpulse_analysis._util.files import cache_folder
from visionpulse_analysis._util.fingerprints import fingerprint, settings
from visionpulse_analysis.attention import routing as attention
from visionpulse_analysis.experiments import cache as kept
from visionpulse_analysis.experiments import conditions as arms
from visionpulse_analysis.experiments import conditions as trunk
from visionpulse_analysis.experiments.cache import state_of
from visionpulse_analysis.experiments.collect import collect
from visionpulse_analysis.experiments.samples import scene_samples
from visionpulse_analysis.metrics import flops as costs
from visionpulse_analysis.pruners import visionpulse

SHORT = {"max_new_tokens": 3, "layers": [1]}


@pytest.fixture(autouse=True)
def empty_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("VISIONPULSE_CACHE", str(tmp_path / "cache"))
    kept.say_once.cache_clear()


@pytest.fixture
def own(vlm):
    """A model of one's own to spoil."""
    parts = {name: copy.deepcopy(getattr(vlm, name)) for name in ("model", "tokenizer", "image_processor")}
    return dataclasses.replace(vlm, **parts)


@pytest.fixture(scope="module")
def samples():
    return scene_samples(1, cells=4)


def entries():
    return set(cache_folder().iterdir()) if cache_folder().exists() else set()


def decoded(vlm, samples, **options):
    """Whether `collect` made something new to keep."""
    before = entries()
    collect(vlm, samples, **SHORT, **options)
    return len(entries() - before)


def is_noticed(vlm, samples, change, **options):
    """Kept before a change, decoded after it as it is to be now, then kept again."""
    assert decoded(vlm, samples, **options) == 1
    change()
    assert [decoded(vlm, samples, **options) for _ in range(2)] == [1, 0]
    [found] = collect(vlm, samples, **SHORT, **options)
    direct = vpa.decode(vlm, samples[0].image, samples[0].question, **SHORT, **options)
    assert found.data_hash == direct.data_hash


def layer(vlm, number=2):
    return vlm.model.get_decoder().layers[number]


def zero_in_place(vlm):
    layer(vlm).self_attn.o_proj.weight.data.zero_()


def zero_under_no_grad(vlm):
    with torch.no_grad():
        layer(vlm).mlp.down_proj.weight[0] *= -1


def zero_through_numpy(vlm):
    layer(vlm).self_attn.o_proj.weight.detach().numpy()[:, 3] = 0.5


def change_an_unsaved_buffer(vlm):
    vlm.model.get_decoder().rotary_emb.inv_freq.mul_(0.9)


def zero_a_head(module, args, output):
    output = output.clone() if isinstance(output, torch.Tensor) else output
    output[..., :8] = 0
    return output


def hook(vlm):
    layer(vlm).self_attn.o_proj.register_forward_hook(zero_a_head)


def hook_before(vlm):
    layer(vlm).self_attn.o_proj.register_forward_pre_hook(lambda module, args: (args[0] * 0.5,))


def patched_forward(vlm):
    projection = layer(vlm).self_attn.o_proj
    forward = projection.forward
    projection.forward = lambda states: forward(states) * 0.5


def parametrize(vlm):
    torch.nn.utils.parametrize.register_parametrization(layer(vlm).self_attn.o_proj, "weight", Half())


class Half(torch.nn.Module):
    def forward(self, weight):
        return weight / 2


class Adapted(torch.nn.Module):
    """A low-rank adapter, as many write it by hand."""

    def __init__(self, base):
        super().__init__()
        self.base = base
        self.down, self.up = torch.nn.Linear(base.in_features, 2), torch.nn.Linear(2, base.out_features)

    def forward(self, states):
        return self.base(states) + self.up(self.down(states))


def adapter(vlm):
    layer(vlm).self_attn.o_proj = Adapted(layer(vlm).self_attn.o_proj)


def end_token(vlm):
    vlm.model.generation_config.eos_token_id = 5


def configuration(vlm):
    vlm.model.config.visionpulse_anchor = 0


def module_attribute(vlm):
    layer(vlm).self_attn.scaling *= 2


def training_mode(vlm):
    vlm.model.train()


def image_processor(vlm):
    vlm.image_processor.image_mean = [0.1, 0.2, 0.3]


CHANGES = [
    zero_under_no_grad, zero_through_numpy, change_an_unsaved_buffer, hook_before, patched_forward, parametrize,
    adapter, end_token, configuration, module_attribute, image_processor, training_mode,
]  # fmt: skip


@pytest.mark.parametrize("change", [zero_in_place, hook], ids=lambda change: change.__name__)
def test_a_model_changed_in_place_is_decoded_again(own, samples, change):
    is_noticed(own, samples, lambda: change(own))


def states(vlm, *changes):
    """The fingerprint of what would run, before and after each of some changes."""
    found = [state_of(vlm, vpa.decode)]
    for change in changes:
        change()
        found.append(state_of(vlm, vpa.decode))
    return found


def test_every_change_of_a_model_counts(own):
    found = states(own, *(lambda change=change: change(own) for change in CHANGES))
    assert None not in found
    same = [change.__name__ for change, one, other in zip(CHANGES, found[1:], found, strict=False) if one == other]
    assert same == []


def test_a_hook_on_every_module_counts_while_it_is_there(own):
    handles = []
    watch = torch.nn.modules.module.register_module_forward_hook
    added = lambda: handles.append(watch(lambda module, args, output: None))  # noqa: E731
    before, during, after = states(own, added, lambda: handles.pop().remove())
    assert before == after != during


def test_what_a_hook_reads_counts(own):
    vector, strength = torch.zeros(layer(own).self_attn.o_proj.out_features), [1.0]
    layer(own).self_attn.o_proj.register_forward_hook(lambda module, args, output: output + strength[0] * vector)
    found = states(own, lambda: vector.fill_(0.3), lambda: strength.append(2.0), lambda: strength.pop())
    assert len(set(found[:3])) == 3 and found[3] == found[1]


def test_a_hook_that_keeps_what_it_sees_always_sees_it(own, samples, caplog):
    seen = []
    layer(own).register_forward_hook(lambda module, args, output: seen.append(float(output[0].sum())))
    with caplog.at_level(logging.WARNING):
        for _ in range(2):
            before = len(seen)
            traces = collect(own, samples, **SHORT)
            assert len(seen) > before, "a kept trace would have called no hook"
    assert [len(trace) for trace in traces] == [3]
    [said] = caplog.messages
    assert said == "results are not kept: what they depend on changed while they were made"


@pytest.mark.parametrize(
    ("name", "value", "before"),
    [
        ("set_num_threads", 2, 1),
        ("set_float32_matmul_precision", "medium", "highest"),
        ("use_deterministic_algorithms", True, False),
        ("set_default_dtype", torch.float64, torch.float32),
        ("set_default_device", "meta", None),
    ],
)
def test_settings_of_the_process_count(name, value, before):
    setting = getattr(torch, name)
    setting(before)
    plain = fingerprint(settings())
    try:
        setting(value)
        assert fingerprint(settings()) != plain
    finally:
        setting(before)
    assert fingerprint(settings()) == plain


def test_variables_of_the_environment_that_the_code_reads_count(vlm, monkeypatch):
    change = lambda name: lambda: monkeypatch.setenv(name, "0")  # noqa: E731
    before, read, unread = states(vlm, change("VISIONPULSE_KERNELS"), change("VISIONPULSE_UNHEARD_OF"))
    assert before != read == unread


def test_a_function_of_the_package_that_is_replaced_counts(vlm, samples, monkeypatch):
    pruner = vpa.VisionPulse(budget_max=0.2)
    plain = visionpulse.top_k
    turned = lambda scores, k, *more: plain((-scores).masked_fill(scores == -torch.inf, -torch.inf), k, *more)  # noqa: E731
    is_noticed(vlm, samples, lambda: monkeypatch.setattr(visionpulse, "top_k", turned), pruner=pruner)


def test_what_is_replaced_in_a_library_counts(vlm, monkeypatch):
    functional, registry = torch.nn.functional, attention.AttentionInterface._global_mapping
    rotate = sys.modules[type(layer(vlm)).__module__]
    given = [functional.scaled_dot_product_attention, registry["sdpa"], rotate.apply_rotary_pos_emb]

    def other(*args, **options):
        return given[0](*args, **options)

    found = states(
        vlm,
        lambda: monkeypatch.setattr(functional, "scaled_dot_product_attention", other),
        lambda: monkeypatch.setitem(registry, "sdpa", other),
        lambda: monkeypatch.setattr(rotate, "apply_rotary_pos_emb", other),
        lambda: monkeypatch.setattr(type(layer(vlm)), "forward", other),
        monkeypatch.undo,
    )
    assert len(set(found[:-1])) == 5 and found[-1] == found[0]


@pytest.fixture
def cell(request):
    """Runs a notebook cell that defines a pruner, and gives the pruner."""
    space: dict[str, Any] = {"__name__": "__main__"}
    test = "".join(c for c in request.node.name if c.isalnum())

    def run(extra=None, **changed):
        given = {"sign": 1, "offset": 0, "body": WHOLE, "test": test, **changed}
        exec(MINE.format(**given), space)
        return space["Mine"](extra=extra)

    return run


WHOLE = "shift(score(layout.patches))"
MINE = """
import datetime, os, random, statistics, uuid
import numpy as np
import torch
from pathlib import Path
from dataclasses import dataclass
from typing import Any, ClassVar
from visionpulse_analysis.pruners import Layout, Pruner, Selection, View
from visionpulse_analysis.pruners.top_k import top_k

SIGN = {sign}

def score(patches):
    return SIGN * torch.arange(patches.shape[1]).float().expand(patches.shape)

def maker():
    offset = {offset}
    def shift(values):
        return values + offset * (torch.arange(values.shape[1]) % 7)
    return shift

shift = maker()

@dataclass(frozen=True)
class Mine(Pruner):
    name: ClassVar[str] = "mine_for_{test}"
    extra: Any = None

    def start(self, layout):
        return Choice(layout, self.extra)

    def to_dict(self):
        return {{"name": self.name}}

class Choice(Selection):
    def __init__(self, layout, extra):
        super().__init__(layout)
        values = {body}
        if extra is not None:
            values = values * torch.as_tensor(extra(values) if callable(extra) else extra)
        k = torch.full((len(values),), 3)
        self.kept = top_k(values.masked_fill(~layout.patches, -torch.inf), k)

    def visible(self, view):
        return self.kept
"""


@pytest.mark.parametrize(
    "changed",
    [{"sign": -1}, {"offset": 100}, {"body": "-shift(score(layout.patches))"}],
    ids=["global", "closure", "class"],
)
def test_a_pruner_of_a_notebook_that_is_edited_counts(vlm, samples, cell, changed):
    assert decoded(vlm, samples, pruner=cell()) == 1
    assert decoded(vlm, samples, pruner=cell()) == 0, "run again, unchanged"
    assert decoded(vlm, samples, pruner=cell(**changed)) == 1
    assert decoded(vlm, samples, pruner=cell(**changed)) == 0


@pytest.mark.parametrize("made", [np.ones], ids=["numpy"])
def test_what_a_pruner_holds_counts(vlm, samples, cell, made):
    held = made(64)
    pruner = cell(extra=held, body=WHOLE)
    held[:] = 1.0
    assert [decoded(vlm, samples, pruner=pruner) for _ in range(2)] == [1, 0]
    held[:] = -1.0
    assert [decoded(vlm, samples, pruner=pruner) for _ in range(2)] == [1, 0]


def test_a_lambda_counts_by_what_it_does(vlm, samples, cell):
    assert decoded(vlm, samples, pruner=cell(extra=lambda values: 1.0, body=WHOLE)) == 1
    assert decoded(vlm, samples, pruner=cell(extra=lambda values: 1.0, body=WHOLE)) == 0
    assert decoded(vlm, samples, pruner=cell(extra=lambda values: -1.0, body=WHOLE)) == 1


def test_what_cannot_be_told_is_not_kept_and_said_once(vlm, samples, cell, caplog):
    with caplog.at_level(logging.WARNING), Path(os.devnull).open() as file:
        pruner = cell(extra=lambda values: 1.0 if file.readable() else 0.0, body=WHOLE)
        assert [len(collect(vlm, samples, pruner=pruner, **SHORT)[0]) for _ in range(2)] == [3, 3]
        assert arms.decode_arms(vlm, samples, {"mine": pruner}, max_new_tokens=3)["mine"][0][0].retention < 1
    assert entries() == set()
    [said] = caplog.messages
    assert "results are not kept" in said and "TextIOWrapper" in said


DRAWN = ["torch.rand(1, 64)", "torch.empty(1, 64).log_normal_()", "torch.distributions.Normal(0, 1).sample((1, 64))",
         "torch.nn.Dropout(0.5)(torch.ones(1, 64))", "torch.as_tensor([[random.random()] * 64])",
         "torch.from_numpy(np.random.rand(1, 64))",
         "torch.from_numpy(np.random.default_rng().random((1, 64)))"]  # fmt: skip
READ = ["torch.load('scores.pt')", "torch.from_numpy(np.loadtxt('scores.txt'))[None]",
        "torch.load(Path('scores.pt').open('rb'))", "torch.full((1, 64), float(uuid.uuid4().int % 7))",
        "torch.full((1, 64), float(len(os.listdir('.'))))", "eval('1 + 0') * torch.ones(1, 64)",
        "globals()['score'](layout.patches)", "torch.full((1, 64), float(datetime.datetime.now().second))"]  # fmt: skip


@pytest.fixture
def scores(tmp_path, monkeypatch):
    """What some of the pruners above read."""
    monkeypatch.chdir(tmp_path)
    torch.save(torch.arange(64.0)[None], "scores.pt")
    np.savetxt("scores.txt", np.arange(64.0))


@pytest.mark.parametrize("body", READ)
def test_a_pruner_that_takes_from_outside_has_no_key(cell, body, scores):
    assert kept.part_of_key(cell()) is not None and kept.part_of_key(cell(body=body)) is None


@pytest.mark.parametrize("body", [*DRAWN, READ[0]])  # that something was drawn is seen afterwards
def test_a_pruner_that_draws_or_takes_from_outside_is_not_kept(vlm, samples, cell, body, scores):
    assert decoded(vlm, samples, pruner=cell(body=body)) == 0


@pytest.mark.parametrize("body", [DRAWN[0], READ[0]])
def test_an_arm_that_draws_or_takes_from_outside_is_not_kept(vlm, samples, cell, body, scores):
    arms.decode_arms(vlm, samples, {"mine": cell(body=body)}, max_new_tokens=2)
    assert not [path for path in entries() if path.name.startswith("outcomes")]


def test_an_arm_beside_one_that_draws_is_kept(vlm, samples, cell):
    given = {"dense": None, "mine": cell(body=DRAWN[0])}
    assert [branched(vlm, samples, given)[1] for _ in range(2)] == [1, 0]


@pytest.mark.parametrize(
    "reach",
    ["rules.score(x)", "apply(rules, x)", "getattr(rules, 'score')(x)", "held['rules'].score(x)", "inside(rules)(x)"],
)
def test_a_module_of_a_user_counts_however_it_is_reached(reach, monkeypatch):
    rules = types.ModuleType("rules_of_a_user")
    monkeypatch.setitem(sys.modules, rules.__name__, rules)
    exec("def score(x):\n    return base(x)\ndef base(x):\n    return 1", vars(rules))
    space = {"__name__": "__main__", "rules": rules, "held": {"rules": rules}}
    exec("def apply(m, x):\n    return m.score(x)\ndef inside(m):\n    return lambda x: m.score(x)", space)
    exec(f"def rule(x):\n    return {reach}", space)
    before = fingerprint(space["rule"])
    assert fingerprint(space["rule"]) == before
    exec("def base(x):\n    return 2", vars(rules))
    assert fingerprint(space["rule"]) != before


def test_a_variable_of_the_environment_whose_name_is_made_counts(monkeypatch):
    space = {"__name__": "__main__", "os": os, "NAME": "MY_OWN"}
    exec("def rule():\n    return os.environ.get(NAME)", space)
    before = fingerprint(space["rule"])
    monkeypatch.setenv("MY_OWN", "3")
    assert fingerprint(space["rule"]) != before


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (operator.itemgetter(0), operator.itemgetter(1)),
        (array.array("i", [1]), array.array("i", [2])),
        (struct.Struct("<I"), struct.Struct("<Q")),
        (random.Random(0), random.Random(1)),
        (np.ma.masked_equal([1.0, 2.0], 2.0), np.ma.masked_less([1.0, 2.0], 3.0)),
    ],
    ids=lambda value: type(value).__name__,
)
def test_a_state_that_lies_outside_of_python_counts(one, other):
    assert fingerprint(one) == fingerprint(one) != fingerprint(other)


def test_a_new_pruner_does_not_touch_what_others_have_kept(vlm, samples, cell):
    assert decoded(vlm, samples, pruner=vpa.VisionPulse()) == 1
    cell()
    assert decoded(vlm, samples, pruner=vpa.VisionPulse()) == 0


ARMS = {"pulse": vpa.VisionPulse(budget_max=0.2)}


def branched(vlm, samples, given=None):
    before = entries()
    found = arms.decode_arms(vlm, samples, given or ARMS, max_new_tokens=3)
    return found, len([path for path in entries() - before if path.name.startswith("outcomes")])


@pytest.mark.parametrize(
    ("place", "name", "other"),
    [
        (arms, "kept_by_layer", lambda trace: np.full(3, 0.25)),
        (arms, "costs_of", lambda trace: halved(trace)),
        (trunk.Trunk, "options", lambda self, pruner, sample: options_of_two(self, pruner, sample)),
    ],
    ids=["retention", "costs", "trunk"],
)
def test_what_makes_outcomes_of_traces_counts(vlm, samples, monkeypatch, place, name, other):
    first, count = branched(vlm, samples)
    assert count == 1
    monkeypatch.setattr(place, name, other)
    second, count = branched(vlm, samples)
    assert count == 1 and second != first
    assert branched(vlm, samples) == (second, 0)


def halved(trace):
    found = costs.costs_of(trace)
    return dataclasses.replace(found, flops=found.flops / 2)


def options_of_two(trunk, pruner, sample):
    return dataclasses.replace(PLAIN(trunk, pruner, sample), max_new_tokens=2)


PLAIN = trunk.Trunk.options


def test_an_arm_is_decoded_for_its_own_changes_only(vlm, samples, cell):
    branched(vlm, samples, {"dense": None, "mine": cell()})
    assert branched(vlm, samples, {"dense": None, "mine": cell(body=f"-{WHOLE}")})[1] == 1
    assert branched(vlm, samples, {"dense": None, "mine": cell()})[1] == 0


def test_what_is_replaced_in_a_library_that_a_pruner_alone_uses_counts(vlm, samples, cell, monkeypatch):
    """`fmean` stays the library's own; what it adds up with does not."""
    given = {"dense": None, "mine": cell(body=f"{WHOLE} * (statistics.fmean([1.0, 1.0]) - 1.5)")}
    first, count = branched(vlm, samples, given)
    assert count == 2 and branched(vlm, samples, given) == (first, 0)
    monkeypatch.setattr(statistics, "fsum", lambda numbers: 2 * math.fsum(numbers))
    second, count = branched(vlm, samples, given)
    assert count >= 1 and second["dense"] == first["dense"] and second["mine"] != first["mine"]
    monkeypatch.setattr(statistics, "fsum", math.fsum)
    assert branched(vlm, samples, given) == (first, 0)


def test_weights_changed_in_place_change_outcomes_and_relevance(own, samples):
    given = {"oracle": vpa.make_pruner("oracle", budget=0.2)}
    first = branched(own, samples, given)[0]
    assert branched(own, samples, given) == (first, 0)
    zero_in_place(own)
    second, count = branched(own, samples, given)
    assert count == 1 and len(list(cache_folder().glob("relevance-*"))) == 2
    shutil.rmtree(cache_folder())
    assert branched(own, samples, given)[0] == second


def damage(path, how):
    whole = path.read_bytes()
    content = {"cut": whole[: len(whole) // 2], "empty": b"", "flipped": flip(whole), "other": b'{"a": [1]}'}[how]
    path.write_bytes(content)


def flip(content):
    middle = len(content) // 2
    return content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :]


@pytest.mark.parametrize("how", ["cut", "other"])
def test_damaged_outcomes_and_relevance_are_made_anew(vlm, samples, how, caplog):
    given = {"oracle": vpa.make_pruner("oracle", budget=0.2)}
    first = branched(vlm, samples, given)[0]
    for path in cache_folder().iterdir():
        damage(path, how)
    with caplog.at_level(logging.WARNING):
        assert branched(vlm, samples, given)[0] == first
    assert sum("is damaged" in said for said in caplog.messages) == 2
    caplog.clear()
    assert branched(vlm, samples, given) == (first, 0) and caplog.messages == []
    assert not [path for path in entries() if path.name.startswith(".")]


@pytest.mark.parametrize("how", ["flipped", "missing"])
def test_damaged_traces_are_made_anew(vlm, samples, how, caplog):
    first = collect(vlm, samples, **SHORT)[0].data_hash
    [folder] = entries()
    chunk = next(path for path in folder.rglob("*") if path.parent.name == "attention" and path.name != "zarr.json")
    if how == "missing":
        chunk.unlink()
    elif how == "added":
        chunk.with_name("stray").write_text("?")
    else:
        damage(chunk, how)
    with caplog.at_level(logging.WARNING):
        assert collect(vlm, samples, **SHORT)[0].data_hash == first
        assert ["is damaged" in said for said in caplog.messages] == [True]
        assert collect(vlm, samples, **SHORT)[0].data_hash == first
    assert len(caplog.messages) == 1 and entries() == {folder}


@pytest.mark.parametrize("how", ["cut", "empty", "flipped", "missing"])
def test_a_folder_whose_seal_is_damaged_is_not_whole(tmp_path, how):
    folder = tmp_path / "kept"
    folder.mkdir()
    (folder / "a").write_text("1")
    kept.seal(folder)
    assert kept.is_whole(folder)
    (folder / kept.SEAL).unlink() if how == "missing" else damage(folder / kept.SEAL, how)
    assert not kept.is_whole(folder) and not folder.exists()


def test_outcomes_of_another_format_are_made_anew(vlm, samples):
    first = branched(vlm, samples)[0]
    [path] = cache_folder().iterdir()
    path.write_text(json.dumps(json.loads(path.read_text())["content"]))
    assert branched(vlm, samples)[0] == first and json.loads(path.read_text())["format"] == kept.FORMAT


TWICE_THE_COSTS = """

_counted = costs_of


def costs_of(trace):
    from dataclasses import replace

    counted = _counted(trace)
    return replace(counted, flops=2 * counted.flops)
"""
EDITED = """
import sys, visionpulse_analysis as vpa
from pathlib import Path
from visionpulse_analysis.experiments.collect import collect
from visionpulse_analysis.experiments.conditions import decode_arms
from visionpulse_analysis.experiments.samples import scene_samples
vlm, samples = vpa.load(sys.argv[1]), scene_samples(1, cells=4)
def run():
    pruner = vpa.VisionPulse(budget_max=0.2)
    [trace] = collect(vlm, samples, pruner=pruner, max_new_tokens=3, layers=[1])
    outcome = decode_arms(vlm, samples, {"pulse": pruner}, max_new_tokens=3)["pulse"][0][0]
    direct = vpa.decode(vlm, samples[0].image, samples[0].question, pruner=pruner, max_new_tokens=3, layers=[1])
    print(trace.data_hash == direct.data_hash, trace.data_hash, outcome.flops, flush=True)
run()
for line in sys.stdin:
    run()
"""


@pytest.mark.slow
def test_a_file_edited_under_a_running_process_counts_in_the_next_one_only(scenes_folder, tmp_path, monkeypatch):
    package = tmp_path / "code" / "visionpulse_analysis"
    shutil.copytree(Path(vpa.__file__).parent, package)  # compiled files too: they save seconds
    environment = {**os.environ, "PYTHONPATH": str(package.parent)}
    words = [sys.executable, "-c", EDITED, str(scenes_folder)]

    def start():
        return subprocess.Popen(
            words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment, cwd=tmp_path
        )

    with start() as running:
        before = running.stdout.readline().split()
        choosing, counting = package / "pruners" / "top_k.py", package / "metrics" / "flops.py"
        choosing.write_text(choosing.read_text().replace("float64(counts) + 1e-9)", "float64(counts) + 3.0)"))
        counting.write_text(counting.read_text() + TWICE_THE_COSTS)
        running.stdin.write("again\n")
        running.stdin.flush()
        assert running.stdout.readline().split() == before
        running.stdin.close()
    with start() as fresh:
        after = fresh.stdout.readline().split()
        fresh.stdin.close()
    assert before[0] == after[0] == "True"
    assert before[1] != after[1] and before[2] != after[2]


@pytest.mark.slow
def test_a_process_and_a_notebooks_kernel_agree(scenes_folder):
    """The one has loaded more than the other, and sets are in another order."""
    asked = textwrap.dedent(
        """
        import sys
        for name in sys.argv[2:]:
            __import__(name)
        import visionpulse_analysis as vpa
        from visionpulse_analysis import decoding
        from visionpulse_analysis.experiments import conditions as arms
        from visionpulse_analysis.experiments.cache import part_of_key, state_of
        vlm = vpa.load(sys.argv[1])
        state = state_of(vlm, decoding.decode, vpa.VisionPulse())
        print(state, state_of(vlm, arms.outcome_of, arms.Trunk), part_of_key(vpa.VisionPulse()))
        """
    )
    others = ["visionpulse_analysis.experiments.sweeps.running", "torch.fx"]
    words = [sys.executable, "-c", asked, str(scenes_folder), *others]
    in_process = subprocess.run(words, capture_output=True, text=True, check=True).stdout
    # A kernel puts functions of its own in the place of some of Python's.
    cell = nbformat.v4.new_code_cell(f"import sys; sys.argv = ['', {str(scenes_folder)!r}]\n{asked}")
    notebook = nbformat.v4.new_notebook(cells=[cell])
    nbclient.NotebookClient(notebook, kernel_name="python3", timeout=600).execute()
    in_kernel = "".join(one["text"] for one in notebook.cells[0].outputs if one.get("name") == "stdout")
    assert in_process == in_kernel and "None" not in in_process


@contextlib.contextmanager
def within(number):
    yield number


def test_a_context_manager_that_decorates_is_told_by_what_makes_it():
    def made(number):
        return within(number)(len)

    assert fingerprint(made(1)) == fingerprint(made(1)) != fingerprint(made(2))
