"""Recording and pruning inside the library's own generate: rows, tokens, and what is left behind."""

from __future__ import annotations

import threading
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from packaging.version import Version
from tiny_models import build
from transformers import LlamaConfig, LlamaForCausalLM, Pipeline
from transformers.modeling_utils import AttentionInterface

import visionpulse_analysis as vpa
from visionpulse_analysis.attention import SelfCheckError, rows
from visionpulse_analysis.attention import routing as attention
from visionpulse_analysis.attention.gathered import Gathered
from visionpulse_analysis.models.locating import LINE, line
from visionpulse_analysis.pruners.base import KNOWN
from visionpulse_analysis.pruners.heads import Learned

QUESTIONS = ["where is the red circle ?", "how many ?"]
CACHE = "cache" if Version(transformers.__version__) >= Version("5.24") else "past_key_values"  # its name in generate
GREEDY = {"max_new_tokens": 6, "do_sample": False}


def state_of(model):
    """Everything that watching touches."""
    parts = list(model.modules())
    return (
        [sorted(part.__dict__) for part in parts],
        sum(len(part._forward_hooks) + len(part._forward_pre_hooks) for part in parts),
        {id(part.config): part.config._attn_implementation for part in parts if hasattr(part, "config")},
        AttentionInterface.get_interface,
        sorted(AttentionInterface._global_mapping),
        dict(attention._interceptors),
    )


def batch_of(vlm, photos, rows=2):
    """Model inputs of some prompts of different lengths, padded on the left, and these prompts."""
    prompts = [vlm.prompt(photo, question) for photo, question in zip(photos[1::-1], QUESTIONS, strict=True)][:rows]
    return vlm.family.batch(prompts, padding=0), prompts


def rounding(rows):
    """Half a unit in the last place of the stored float16, and the kernels' own rounding."""
    return np.spacing(np.float16(rows.max())) / 2 + 1e-5


def assert_rows_of_eager(vlm, trace, prompt):
    """The rows of a trace are those of one eager pass over the prompt and all its tokens, and so are its logprobs."""
    tokens = torch.from_numpy(trace.token_ids.copy())
    whole = vlm.family.batch([prompt.answered(tokens[:-1])], padding=0)
    position = vlm.family.positions(vlm.model, whole)
    before = attention.check_kernel(vlm.model)
    vlm.model.set_attn_implementation({"text_config": "eager"})
    with torch.no_grad():
        out = vlm.model(**whole, position_ids=position, use_cache=False, output_attentions=True)
    vlm.model.set_attn_implementation({"text_config": before})
    first = len(prompt.ids) - 1
    places = torch.from_numpy(trace.grid.position.copy())
    rows = torch.stack([out.attentions[layer][0, :, first:] for layer in trace.layers])[..., places]
    rows = rows.permute(2, 0, 1, 3).numpy()
    assert np.abs(trace.attention.values - rows).max() <= rounding(rows)
    assert np.abs(trace.mass.values - rows.sum(-1)).max() < 1e-5
    logprobs = torch.log_softmax(out.logits[0, first:], dim=1).gather(1, tokens[:, None])[:, 0].numpy()
    assert np.abs(trace.logprobs - logprobs).max() < 1e-5


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    """Loaded tiny models by name."""
    known = {}

    def get(name):
        if name not in known:
            folder = tmp_path_factory.mktemp(name)
            build(name).save(folder)
            known[name] = vpa.load(str(folder))
        return known[name]

    return get


def test_traces_are_those_of_decode(family, photos):
    vlm = family.vlm
    inputs, prompts = batch_of(vlm, photos)
    plain = vlm.model.generate(**inputs, **GREEDY)
    before = state_of(vlm.model)
    where = {"locate": lambda model, given: [prompt.grid for prompt in prompts]}
    for options in ({}, {"heads": "all", "layers": [1, 3]}):
        with vpa.watch(vlm.model, vlm.tokenizer, **options, **where) as w:
            assert torch.equal(vlm.model.generate(**inputs, **GREEDY), plain)
        decoded = vpa.decode(vlm, photos[1::-1], QUESTIONS, max_new_tokens=6, **options)
        for trace, other in zip(w.traces, decoded, strict=True):
            assert trace.tokens == other.tokens and trace.layers == other.layers and trace.heads == other.heads
            assert trace.grid.equals(other.grid) and trace.prompt_tokens == other.prompt_tokens
            assert np.abs(trace.logprobs - other.logprobs).max() < 1e-5
            assert np.abs(trace.mass.values - other.mass.values).max() < 1e-5
            rows = other.attention.values.astype(np.float32)
            assert np.abs(trace.attention.values - rows).max() <= 2 * rounding(rows)
            same = {
                name: other.meta[name] for name in ("model", "model_hash", "dtype", "execution", "finished", "costs")
            }
            assert {name: trace.meta[name] for name in same} == same
    assert state_of(vlm.model) == before


def test_without_a_map_positions_lie_on_a_line(tiny, photos):
    vlm = tiny("qwen3_vl")
    inputs, prompts = batch_of(vlm, photos)
    with vpa.watch(vlm.model, vlm.tokenizer) as w:
        vlm.model.generate(**inputs, **GREEDY)
    for trace, prompt in zip(w.traces, prompts, strict=True):
        assert np.array_equal(trace.grid.position, prompt.grid.position)
        assert trace.grid.shape() == (1, len(prompt.grid)) and trace.meta["map"] == "no map measured"
        assert prompt.question in trace.question
    long = line(np.arange(LINE + 5))
    assert long.shape() == (2, LINE) and (long.row[-5:] == 1).all()


WAYS = {
    "sampled": {"do_sample": True},
    "three samples": {"do_sample": True, "num_return_sequences": 3},
    "beams": {"num_beams": 3},
    "two of three beams": {"num_beams": 3, "num_return_sequences": 2},
    "sampled beams": {"num_beams": 2, "do_sample": True},
    "as a dictionary": {"return_dict_in_generate": True, "output_logits": True},
    "static cache": {"cache_implementation": "static"},
    "no cache": {"use_cache": False},
    "beams without a cache": {"use_cache": False, "num_beams": 2},
    "eager": {},
    "compiled": {},
}


@pytest.mark.parametrize("name", ["gemma3", "qwen3_vl"])
@pytest.mark.parametrize("way", WAYS)
def test_every_way_of_generating_gives_the_rows_of_an_eager_pass(tiny, photos, name, way, monkeypatch):
    vlm, options = tiny(name), {**GREEDY, **WAYS[way]}
    inputs, prompts = batch_of(vlm, photos)
    if way == "eager":
        monkeypatch.setattr(vlm.model.get_decoder().config, "_attn_implementation", "eager")
    if way == "compiled":
        monkeypatch.setattr(vlm.model, "forward", torch.compile(vlm.model.forward, backend="eager"))
    torch.manual_seed(1)
    plain = vlm.model.generate(**inputs, **options) if way != "compiled" else None
    before = state_of(vlm.model)
    torch.manual_seed(1)
    with vpa.watch(vlm.model, vlm.tokenizer, heads="all") as w:
        out = vlm.model.generate(**inputs, **options)
    assert state_of(vlm.model) == before
    assert plain is None or torch.equal(*(getattr(one, "sequences", one) for one in (plain, out)))
    monkeypatch.undo()
    share = options.get("num_return_sequences", 1)
    assert [trace.meta["prompt"] for trace in w.traces] == [prompt for prompt in (0, 1) for _ in range(share)]
    for number, trace in enumerate(w.traces):
        assert_rows_of_eager(vlm, trace, prompts[number // share])


@pytest.mark.parametrize("way", ["an assistant", "prompt lookup"])
def test_tokens_that_are_tried_and_given_up_leave_no_row(tiny, photos, way):
    vlm = tiny("llava")
    words = vlm.model.config.get_text_config().vocab_size
    torch.manual_seed(1)
    assistant = LlamaForCausalLM(
        LlamaConfig(vocab_size=words, hidden_size=32, num_hidden_layers=2, num_attention_heads=4)
    ).eval()
    ways = {"an assistant": {"assistant_model": assistant},
            "prompt lookup": {"prompt_lookup_num_tokens": 3, "max_matching_ngram_size": 1}}  # fmt: skip
    prompt = vlm.prompt(photos[1], "aaaa bbbb aaaa bbbb")
    # Else the answer's beginning would be looked up where the picture begins, and a picture be proposed.
    prompt.ids[int(prompt.grid.position[0]) - 2 : int(prompt.grid.position[0])] = words - 1
    inputs = vlm.family.batch([prompt], padding=0)
    try:
        plain = vlm.model.generate(**inputs, **GREEDY, **ways[way])
    except ValueError as error:  # transformers 5.4 gives an assistant of words the pictures as well
        pytest.skip(str(error))
    read = []
    handle = vlm.model.register_forward_pre_hook(
        lambda module, args, given: read.append(given["input_ids"].shape[1]), with_kwargs=True
    )
    try:
        with vpa.watch(vlm.model, vlm.tokenizer, heads="all") as w:
            out = vlm.model.generate(**inputs, **GREEDY, **ways[way])
    finally:
        handle.remove()
    assert torch.equal(out, plain) and any(1 < length < len(prompt.ids) for length in read)
    assert_rows_of_eager(vlm, w.traces[0], prompt)


def test_several_pictures_and_a_prompt_read_in_two_parts(tiny, photos):
    vlm = tiny("llava")
    prompt = vlm.prompt(photos, QUESTIONS[0])
    inputs = vlm.family.batch([prompt], padding=0)
    with vpa.watch(vlm.model, vlm.tokenizer, heads="all") as w:
        vlm.model.generate(**inputs, **GREEDY)
        first = w.traces[0]
        # The cache of all but the last ten tokens, as of a common beginning.
        head = {
            **inputs,
            "input_ids": inputs["input_ids"][:, :-10],
            "attention_mask": inputs["attention_mask"][:, :-10],
        }
        with torch.no_grad():
            cache = vlm.model(**head, use_cache=True).past_key_values
        words = {"input_ids": inputs["input_ids"], "attention_mask": inputs["attention_mask"]}
        vlm.model.generate(**words, **{CACHE: cache}, **GREEDY)
    assert_rows_of_eager(vlm, first, prompt)
    assert w.traces[1].tokens == first.tokens and len(w.traces) == 2
    assert_rows_of_eager(vlm, w.traces[1], prompt)


def test_prefill_in_chunks(tiny, photos):
    """Chunks of embeddings that hold the pictures already, as a model that encodes them beforehand reads them."""
    vlm = tiny("llava")
    inputs, prompts = batch_of(vlm, photos)
    pixels, embed = inputs.pop("pixel_values"), vlm.model.get_decoder().embed_tokens
    with torch.no_grad():
        features = torch.cat(list(vlm.model.get_image_features(pixel_values=pixels).pooler_output))
    places = inputs["input_ids"] == vlm.family.image_id
    taken = []

    def put_in(module, args, output):
        ids = args[0]
        if ids.shape[1] > 1:
            image = ids == vlm.family.image_id
            rows = torch.zeros(places.shape, dtype=torch.long)
            rows[places] = torch.arange(int(places.sum()))
            start = sum(taken)
            taken.append(ids.shape[1])
            output[image] = features[rows[:, start : start + ids.shape[1]][image]]
        return output

    handle = embed.register_forward_hook(put_in)
    try:
        with vpa.watch(vlm.model, vlm.tokenizer, heads="all") as w:
            vlm.model.generate(**inputs, **GREEDY, prefill_chunk_size=16)
    finally:
        handle.remove()
    assert len(taken) > 2
    for trace, prompt in zip(w.traces, prompts, strict=True):
        assert_rows_of_eager(vlm, trace, prompt)


def test_a_pipeline(tiny, photos):
    vlm = tiny("qwen3_vl")
    inputs, prompts = batch_of(vlm, photos)

    class Asking(Pipeline):
        """What `image-text-to-text` does around generate; that one needs a processor, and so torchvision."""

        def _sanitize_parameters(self, **given):
            return {}, given, {}

        def preprocess(self, given):
            return given

        def _forward(self, given, **options):
            model: Any = self.model
            return {"ids": model.generate(**given, **options)}

        def postprocess(self, given):
            return given["ids"]

    pipeline = Asking(model=vlm.model, tokenizer=vlm.tokenizer)
    with vpa.watch(vlm.model, vlm.tokenizer, heads="all") as w:
        pipeline(inputs, **GREEDY)
    assert_rows_of_eager(vlm, w.traces[1], prompts[1])


KEPT = ("kept", "k_per_layer", "budget", "k", "pruner_mass")


def pruners():
    vpa.list_pruners()  # finds all of them
    vision = vpa.VisionPulse
    given = {name: {"prompt": "text"} for name in ("zspaprune", "cdpruner")}
    given |= {"yopo": {"window": None}, "setok": {"place": 0.0}}  # which ask for a map otherwise
    made = [
        KNOWN[name](**given.get(name, {}))
        for name in sorted(KNOWN)
        if name not in ("lookm", "oracle", "hindsight", "combined") and not issubclass(KNOWN[name], Learned)
    ]
    made += [vision(budget=0.2, reuse_previous=True), vision(budget=0.2, granularity="block", block_size=4)]
    made += [vision(budget=0.2, anchor_layer=0, hysteresis=1.0), KNOWN["fastv"]() | vision(budget=0.3)]
    return [pytest.param(one, id=f"{number}-{one.name or 'combined'}") for number, one in enumerate(made)]


@pytest.mark.parametrize("pruner", pruners())
@pytest.mark.parametrize("name", ["gemma3"])  # which has windows
def test_a_pruner_keeps_what_it_keeps_in_decode(tiny, photos, name, pruner):
    vlm = tiny(name)
    inputs, _ = batch_of(vlm, photos)
    decoded = vpa.decode(vlm, photos[1::-1], QUESTIONS, max_new_tokens=6, pruner=pruner)
    caches = ["dynamic", "static"] if isinstance(pruner, vpa.VisionPulse) else ["dynamic"]
    for kind in caches:
        with vpa.watch(vlm.model, vlm.tokenizer, pruner=pruner) as w:
            vlm.model.generate(**inputs, **GREEDY, cache_implementation=kind)
        for trace, other in zip(w.traces, decoded, strict=True):
            assert trace.tokens == other.tokens
            for field in KEPT:
                a, b = (one.dataset[field].values.astype(float) for one in (trace, other))
                # Masses, and the budgets that follow from them, are sums in another order under other masks.
                atol = {"pruner_mass": 1e-5, "budget": 1e-5}.get(field, 0)
                assert np.allclose(a, b, rtol=0, atol=atol, equal_nan=True), field
            rows = other.attention.values.astype(np.float32)
            assert np.abs(trace.attention.values - rows).max() <= 2 * rounding(rows)
            assert trace.meta["costs"] == other.meta["costs"] and trace.meta["execution"] == "masked"
    # SeTok keeps as many as the picture asks for: here all.
    whole = pruner.name in ("keep_all", "mvw", "setok", "shortv", "vica", "visipruner", "yopo") or pruner.reweights
    assert not decoded[0].kept.values.all() or whole


def test_a_pruner_under_eager_attention_and_under_beams(tiny, photos, monkeypatch):
    vlm = tiny("qwen3_vl")
    inputs, prompts = batch_of(vlm, photos)
    pruner = vpa.VisionPulse(budget=0.2, reuse_previous=True)
    with vpa.watch(vlm.model, pruner=pruner, heads="all") as w:
        vlm.model.generate(**inputs, **GREEDY)
        vlm.model.generate(**inputs, **GREEDY, num_beams=3)
        # What beams found, said alone: each token is forced, and each step prunes as it did there.
        for number in (0, 1):
            said = torch.from_numpy(w.traces[2 + number].token_ids.copy())
            alone = vlm.family.batch([prompts[number]], padding=0)
            length = alone["input_ids"].shape[1]
            vlm.model.generate(
                **alone,
                **GREEDY,
                prefix_allowed_tokens_fn=lambda _, ids: [int(said[len(ids) - length])],  # noqa: B023
            )
        monkeypatch.setattr(vlm.model.get_decoder().config, "_attn_implementation", "eager")
        vlm.model.generate(**inputs, **GREEDY)
    for one, other in ((2, 4), (3, 5), (0, 6), (1, 7)):
        a, b = w.traces[one], w.traces[other]
        assert a.tokens == b.tokens and np.array_equal(a.kept.values, b.kept.values)
        assert np.abs(a.mass.values - b.mass.values).max() < 1e-5


def faulty(change):
    """The library's own kernel, given something else."""
    stock = AttentionInterface._global_mapping["sdpa"]

    def kernel(module, query, key, value, mask, **options):
        return stock(module, *change(query, key, value, mask), **options)

    return kernel


FAULTS = {
    "scale": lambda q, k, v, m: (1.5 * q, k, v, m),
    "scale, a little": lambda q, k, v, m: (1.02 * q, k, v, m),
    "keys moved by one": lambda q, k, v, m: (q, k.roll(1, dims=2), v, m),
    "heads of keys swapped": lambda q, k, v, m: (q, k.flip(1), v, m),
    "padding seen": lambda q, k, v, m: (q, k, v, None),
    "one value": lambda q, k, v, m: (q, k, v + torch.eye(v.shape[2])[3][:, None] * v.abs().mean(), m),
}


TOO_SMALL = ("scale, a little", "one value")  # for bfloat16, whose rounding explains more


@pytest.mark.parametrize(
    ("fault", "dtype"),
    [(fault, torch.float32) for fault in FAULTS] + [(f, torch.bfloat16) for f in FAULTS if f not in TOO_SMALL],
    ids=str,
)
def test_the_self_check_catches_a_kernel_that_computes_something_else(tiny, photos, fault, dtype, monkeypatch):
    vlm = tiny("llava")
    inputs = vlm.to_device(batch_of(vlm, photos)[0])
    vlm.model.to(dtype)
    inputs["pixel_values"] = inputs["pixel_values"].to(dtype)
    try:
        with vpa.watch(vlm.model):
            vlm.model.generate(**inputs, **GREEDY)
            monkeypatch.setitem(AttentionInterface._global_mapping, "sdpa", faulty(FAULTS[fault]))
            with pytest.raises(SelfCheckError, match=r"layer 0 .*head \d.*differs from the kernel's output by"):
                vlm.model.generate(**inputs, **GREEDY)
    finally:
        vlm.model.to(torch.float32)


def test_the_self_check_catches_a_recorder_that_looks_elsewhere(tiny, photos, monkeypatch):
    vlm = tiny("llava")
    inputs = batch_of(vlm, photos)[0]
    right = rows.Query.of.__func__

    def one_off(cls, call, index, total):
        query = right(cls, call, index, total)
        return replace(query, key=query.key.roll(1, dims=2))

    monkeypatch.setattr(rows.Query, "of", classmethod(one_off))
    with vpa.watch(vlm.model), pytest.raises(SelfCheckError, match="rounding explains"):
        vlm.model.generate(**inputs, **GREEDY)


def test_a_kernel_that_is_not_plain_is_recorded_by_the_models_own_function(tiny, photos, monkeypatch):
    """A cap on the logits, in kernel and eager function, which no option tells of."""
    vlm = tiny("llava")
    inputs = batch_of(vlm, photos)[0]
    module = vlm.model.get_decoder().layers[0].self_attn
    eager = __import__(type(module).__module__, fromlist=["eager_attention_forward"])

    def capped(module, query, key, value, mask, *, scaling, **options):
        group = query.shape[1] // key.shape[1]
        key, value = key.repeat_interleave(group, dim=1), value.repeat_interleave(group, dim=1)
        logits = torch.tanh(query @ key.transpose(2, 3) * scaling / 2) * 2
        if mask is None:
            mask = torch.ones(query.shape[2], key.shape[2], dtype=torch.bool).tril(key.shape[2] - query.shape[2])
        weights = torch.softmax(logits.masked_fill(~mask, -1e9) if mask.dtype == torch.bool else logits + mask, dim=-1)
        return (weights @ value).transpose(1, 2), weights

    monkeypatch.setitem(AttentionInterface._global_mapping, "sdpa", lambda *a, **o: (capped(*a, **o)[0], None))
    monkeypatch.setattr(eager, "eager_attention_forward", capped)
    with vpa.watch(vlm.model, heads="all") as w:
        vlm.model.generate(**inputs, **GREEDY)
    seen = []

    def noted(module, *given, **options):
        output, weights = capped(module, *given, **options)
        if hasattr(module, "layer_idx"):  # not the vision tower
            seen.append(weights)
        return output, None

    monkeypatch.setitem(AttentionInterface._global_mapping, "sdpa", noted)
    vlm.model.generate(**inputs, **GREEDY)
    places = torch.from_numpy(w.traces[0].grid.position.copy())
    for step in range(6):
        weights = torch.stack([weights[0, :, -1] for weights in seen[4 * step : 4 * step + 4]])[..., places].numpy()
        assert np.abs(w.traces[0].attention.values[step] - weights).max() <= rounding(weights)


def test_ids_and_features_that_disagree_are_an_error_that_names_both(tiny, photos, monkeypatch):
    vlm = tiny("qwen3_vl")
    inputs, _ = batch_of(vlm, photos)
    grid = type(vlm.model.model)
    real = grid.get_placeholder_mask

    def shifted(self, *given, **named):
        masks = real(self, *given, **named)
        return (masks[0].roll(1, dims=1), *masks[1:])

    monkeypatch.setattr(grid, "get_placeholder_mask", shifted)
    with (
        vpa.watch(vlm.model),
        pytest.raises(ValueError, match=r"60 tokens by the ids|by the ids of image_token_id.*features"),
    ):
        vlm.model.generate(**inputs, **GREEDY)


def test_where_no_id_says_so_the_features_tell_where_the_pictures_are(tiny, photos, monkeypatch):
    vlm = tiny("llava")
    inputs, prompts = batch_of(vlm, photos)
    from visionpulse_analysis.decoding.watching import prompts as reading

    for name in ("IMAGE_IDS", "VIDEOS"):
        monkeypatch.setattr(reading, name, ())
    with vpa.watch(vlm.model, heads="all") as w:
        vlm.model.generate(**inputs, **GREEDY)
    for trace, prompt in zip(w.traces, prompts, strict=True):
        assert np.array_equal(trace.grid.position, prompt.grid.position)
        assert_rows_of_eager(vlm, trace, prompt)


def test_models_and_threads_do_not_disturb_one_another(tiny, photos):
    one, other = tiny("llava"), tiny("qwen3_vl")
    (given, prompts), (others, _) = batch_of(one, photos), batch_of(other, photos)
    expected = other.model.generate(**others, **GREEDY)
    one.model.generate(**given, **GREEDY)  # the library installs hooks of its own the first time
    before = [state_of(vlm.model) for vlm in (one, other)]
    with vpa.watch(one.model, heads="all") as outer:
        assert torch.equal(other.model.generate(**others, **GREEDY), expected) and not outer.traces
        with vpa.watch(other.model) as inner:
            work = [
                threading.Thread(target=vlm.model.generate, kwargs={**inputs, **GREEDY})
                for vlm, inputs in ((one, given), (one, given), (other, others))
            ]
            for thread in work:
                thread.start()
            for thread in work:
                thread.join()
        assert (len(outer.traces), len(inner.traces)) == (4, 2)
        # What goes on outside of generate, and a decode of ours, leave no trace and are not disturbed.
        with torch.no_grad():
            one.model(**given)
        dense = vpa.decode(one, photos[1], QUESTIONS[0], max_new_tokens=6)
    assert len(outer.traces) == 4 and dense.tokens == vpa.decode(one, photos[1], QUESTIONS[0], max_new_tokens=6).tokens
    assert [state_of(vlm.model) for vlm in (one, other)] == before
    for trace in outer.traces:  # for which the library installs hooks of its own
        assert_rows_of_eager(one, trace, prompts[trace.meta["prompt"]])


def test_two_watches_of_one_model_are_refused(tiny, photos):
    vlm = tiny("llava")
    before, inputs = state_of(vlm.model), batch_of(vlm, photos)[0]
    with vpa.watch(vlm.model) as w:
        with pytest.raises(RuntimeError, match="watched already"), vpa.watch(vlm.model):
            pass
        vlm.model.generate(**inputs, **GREEDY)
    assert len(w.traces) == 2 and state_of(vlm.model) == before


class Stops(BaseException):
    """Stands for Ctrl-C, and for anything else that ends a generation."""


@pytest.mark.parametrize("error", [KeyboardInterrupt, Stops, ValueError])
def test_a_generation_that_fails_leaves_the_model_as_it_was_and_its_steps_in_the_store(tiny, photos, tmp_path, error):
    vlm = tiny("llava")
    inputs, _ = batch_of(vlm, photos)
    whole = vlm.model.generate(**inputs, **GREEDY)[:, inputs["input_ids"].shape[1] :]
    before = state_of(vlm.model)

    def stops(ids, scores, **_):
        if ids.shape[1] == inputs["input_ids"].shape[1] + 4:
            raise error
        return torch.zeros(len(ids), dtype=torch.bool)

    store = vpa.TraceStore(tmp_path / "traces", mode="a")
    with pytest.raises(error), vpa.watch(vlm.model, store=store, ids=["a", "b", "c", "d"]) as w:
        try:
            vlm.model.generate(**inputs, **GREEDY, stopping_criteria=[stops])
        finally:
            assert w.traces == []
            vlm.model.generate(**inputs, **GREEDY)
    assert state_of(vlm.model) == before
    assert [trace.meta["id"] for trace in w.traces] == ["c", "d"] and store["d"].meta["finished"] is False
    assert store["d"].meta["complete"] and len(store["d"]) == 6
    assert not store["b"].meta["complete"] and store["b"].token_ids.tolist() == whole[1, :3].tolist()


@pytest.mark.parametrize("way", [{}, {"do_sample": True, "num_return_sequences": 2}], ids=["greedy", "two samples"])
def test_traces_are_written_as_generate_goes_on(tiny, photos, tmp_path, way):
    """Seen from inside: the steps but the newest two, and whole what has ended; kept when the rest is interrupted."""
    vlm = tiny("llava")
    inputs, _ = batch_of(vlm, photos)
    length, names = inputs["input_ids"].shape[1], list("abcd"[: 2 * way.get("num_return_sequences", 1)])
    torch.manual_seed(0)
    with vpa.watch(vlm.model) as plain:
        long = vlm.model.generate(**inputs, **{**GREEDY, **way})[:, length:].tolist()
    end = next(token for token in long[0][1:3] if all(token not in other for other in long[1:]))
    at = long[0].index(end)
    store, seen = vpa.TraceStore(tmp_path / "traces", mode="a"), []

    def look(ids, scores, **_):
        seen.append([(name in store.finished_ids, len(store[name]) if name in store else 0) for name in names])
        if ids.shape[1] == length + 5:
            raise Stops
        return torch.zeros(len(ids), dtype=torch.bool)

    torch.manual_seed(0)
    with pytest.raises(Stops), vpa.watch(vlm.model, store=store, ids=names) as w:
        options = {**GREEDY, **way, "eos_token_id": end, "pad_token_id": 0}
        vlm.model.generate(**inputs, **options, stopping_criteria=[look])
    assert [[count for _, count in row[1:]] for row in seen] == [[max(0, step - 1)] * len(row[1:])
                                                                 for step, row in enumerate(seen)]  # fmt: skip
    assert [row[0] for row in seen] == [(step > at, at + 1 if step > at else max(0, step - 1)) for step in range(5)]
    assert [trace.meta["id"] for trace in w.traces] == ["a"] and store["a"].meta["finished"]
    for number, name in enumerate(names):
        trace, whole = store[name], plain.traces[number]
        assert trace.token_ids.tolist() == long[number][: at + 1 if number == 0 else 4]
        assert np.array_equal(trace.attention.values, whole.attention.values[: len(trace)])
        assert trace.logprobs.tolist() == whole.logprobs.tolist()[: len(trace)]


@pytest.mark.parametrize("way", [{}, {"num_beams": 2}, {"do_sample": True, "num_return_sequences": 2}], ids=str)
def test_gathered_reads_only_what_is_kept_and_gives_what_masks_give(tiny, photos, monkeypatch, way):
    vlm, read = tiny("llava"), []
    inputs, _ = batch_of(vlm, photos)
    attend = Gathered.attend
    monkeypatch.setattr(Gathered, "attend", lambda self, query, key, *given, **named: read.append(
        (self.columns.shape[1], key.shape[2])) or attend(self, query, key, *given, **named))  # fmt: skip
    pruner, found = vpa.VisionPulse(budget=0.1), {}
    for execution in ("masked", "gathered"):
        torch.manual_seed(0)
        with vpa.watch(vlm.model, pruner=pruner, execution=execution, heads="all") as w:
            out = vlm.model.generate(**inputs, **{**GREEDY, **way})
        found[execution] = w.traces, out
    (masked, plain), (gathered, out) = found["masked"], found["gathered"]
    assert torch.equal(plain, out) and read and all(columns < keys for columns, keys in read)
    for one, other in zip(masked, gathered, strict=True):
        assert (one.meta["execution"], other.meta["execution"]) == ("masked", "gathered")
        assert one.tokens == other.tokens and np.array_equal(one.kept.values, other.kept.values)
        assert np.abs(one.logprobs - other.logprobs).max() < 1e-5
        assert np.abs(one.mass.values - other.mass.values).max() < 1e-5
        assert np.abs(one.attention.values - other.attention.values).max() <= 2 * rounding(one.attention.values)


def test_gathered_is_refused_where_it_would_be_another_computation(tiny, photos):
    vlm = tiny("llava")
    inputs, _ = batch_of(vlm, photos)
    with vpa.watch(vlm.model, pruner=vpa.VisionPulse(budget=0.1), execution="gathered") as w:
        with pytest.raises(ValueError, match=r"layer \d \(LlamaAttention\) does not compute a plain softmax over the"):
            vlm.model.generate(**inputs, **GREEDY, cache_implementation="static")
        assert len(vlm.model.generate(**inputs, **GREEDY)) == 2 == len(w.traces)
    with pytest.raises(ValueError, match="execution must be 'masked' or 'gathered', got 'flash'"):
        with vpa.watch(vlm.model, execution="flash"):
            pass


def test_ends_of_sequences(tiny, photos):
    vlm = tiny("llava")
    inputs, _ = batch_of(vlm, photos)
    length = inputs["input_ids"].shape[1]
    long = vlm.model.generate(**inputs, **GREEDY)[:, length:]
    end = next(int(t) for t in long[0] if int(t) not in long[1].tolist())
    at = long[0].tolist().index(end)

    def criterion(ids, scores, **_):
        return torch.tensor([ids.shape[1] - length > at, False])

    with vpa.watch(vlm.model) as w:
        vlm.model.generate(**inputs, **GREEDY, eos_token_id=end)
        vlm.model.generate(**inputs, **GREEDY, stopping_criteria=[criterion])
    for first, second in (w.traces[:2], w.traces[2:]):
        assert first.token_ids.tolist() == long[0, : at + 1].tolist() and first.meta["finished"]
        assert second.token_ids.tolist() == long[1].tolist() and not second.meta["finished"]


def test_what_cannot_be_right_is_refused_by_name(tiny, photos, monkeypatch):
    vlm = tiny("llava")
    inputs, _ = batch_of(vlm, photos)
    before = state_of(vlm.model)
    words = {name: inputs[name] for name in ("input_ids", "attention_mask")}
    no_picture = {"input_ids": torch.full((1, 5), 7), "attention_mask": torch.ones(1, 5, dtype=torch.long)}
    right = {**inputs, "attention_mask": inputs["attention_mask"].flip(1), "input_ids": inputs["input_ids"].flip(1)}
    with torch.no_grad():
        cache = vlm.model(**inputs, use_cache=True).past_key_values
    longer = torch.cat([inputs["attention_mask"], torch.ones(2, 1, dtype=torch.long)], dim=1)
    cases = [
        ("no image token", lambda: vlm.model.generate(**no_picture, **GREEDY)),
        ("given no pictures", lambda: vlm.model.generate(**words, **GREEDY)),
        ("padded on the right", lambda: vlm.model.generate(**right, **GREEDY)),
        ("no input_ids", lambda: vlm.model.generate(inputs_embeds=torch.zeros(1, 3, 32), **GREEDY)),
        ("only the new 1 of", lambda: vlm.model.generate(
            input_ids=words["input_ids"][:, -1:], attention_mask=longer, past_key_values=cache, **GREEDY)),
        ("continuous batching", lambda: vlm.model.generate_batch([[1, 2]])),
    ]  # fmt: skip
    with vpa.watch(vlm.model) as w:
        for message, act in cases:
            with pytest.raises(ValueError, match=message):
                act()
        vlm.model.train()
        with pytest.raises(ValueError, match=r"training mode.*model\.eval\(\)"):
            vlm.model.generate(**inputs, **GREEDY)
        vlm.model.eval()
    assert w.traces == [] and state_of(vlm.model) == before
    for option, message in (
        ({"layers": 9}, "different indices"), ({"heads": [7]}, "heads"), ({"pruner": "visionpulse"}, "pruner"),
        ({"store": 3}, "TraceStore"), ({"seed": 0.5}, "seed"),
    ):  # fmt: skip
        with pytest.raises(ValueError, match=message), vpa.watch(vlm.model, **option):
            pass
    with pytest.raises(ValueError, match="model of transformers"), vpa.watch(vlm):
        pass
    with pytest.raises(ValueError, match="processor or tokenizer"), vpa.watch(vlm.model, object()):
        pass
    monkeypatch.setattr(vlm.model.get_decoder().config, "_attn_implementation", "flex_attention")
    with pytest.raises(ValueError, match=r"'flex_attention'.*attn_implementation='sdpa'"), vpa.watch(vlm.model):
        pass
    monkeypatch.setattr(vlm.model.get_decoder().config, "_attn_implementation", "sdpa")


@pytest.mark.parametrize(
    ("pruner", "options", "message"),
    [
        (KNOWN["visionpulse"](), {"use_cache": False}, "use_cache=True"),
        (
            KNOWN["visionpulse"](),
            {"prompt_lookup_num_tokens": 3, "max_matching_ngram_size": 1},
            "prompt_lookup_num_tokens",
        ),
        (KNOWN["lookm"](), {}, "lookm edits the cache.*vpa.decode"),
        (KNOWN["oracle"](), {}, "through decode"),
        (KNOWN["zspaprune"](), {}, "prompt='text'"),
    ],
    ids=["no cache", "several tokens", "cache", "oracle", "question"],
)
def test_pruners_that_cannot_be_right_are_refused_by_name(tiny, photos, pruner, options, message):
    vlm = tiny("llava")
    inputs = vlm.family.batch([vlm.prompt(photos[1], "aaaa bbbb aaaa bbbb")], padding=0)
    with vpa.watch(vlm.model, pruner=pruner) as w, pytest.raises(ValueError, match=message):
        vlm.model.generate(**inputs, **GREEDY, **options)
    assert w.traces == []


def test_names_run_out_before_anything_is_generated(tiny, photos, tmp_path):
    vlm = tiny("llava")
    inputs, _ = batch_of(vlm, photos)
    with (
        pytest.raises(ValueError, match="needs ids"),
        vpa.watch(vlm.model, store=vpa.TraceStore(tmp_path / "s", mode="a")),
    ):
        pass
    with vpa.watch(vlm.model, ids=(f"row-{n}" for n in range(3))) as w:
        vlm.model.generate(**inputs, **GREEDY)
        with pytest.raises(ValueError, match="2 sequences, and ids has only 1"):
            vlm.model.generate(**inputs, **GREEDY)
    assert [trace.meta["id"] for trace in w.traces] == ["row-0", "row-1"]


def test_a_thread_that_outlives_the_block_is_told(tiny, photos):
    vlm = tiny("llava")
    inputs, _ = batch_of(vlm, photos)
    before, go, inside = state_of(vlm.model), threading.Event(), threading.Event()

    def waits(ids, scores, **_):
        inside.set()
        go.wait(60)
        return torch.zeros(len(ids), dtype=torch.bool)

    thread = threading.Thread(target=lambda: vlm.model.generate(**inputs, **GREEDY, stopping_criteria=[waits]))
    try:
        with pytest.raises(RuntimeError, match="join them"), vpa.watch(vlm.model):
            thread.start()
            inside.wait(60)
        assert state_of(vlm.model) == before
    finally:
        go.set()
        thread.join()
