"""Heads: trained for one model, resumed bit for bit, and worth what is stored of them."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
import torch

import visionpulse_analysis as vpa
from visionpulse_analysis._util.files import data_folder
from visionpulse_analysis.experiments.cache import part_of_key
from visionpulse_analysis.pruners.heads import TRAINING, read_training
from visionpulse_analysis.pruners.networks import Head, load_head, save_head
from visionpulse_analysis.pruners.networks.compressor import Compressor
from visionpulse_analysis.pruners.networks.gates import Gates, StepGates
from visionpulse_analysis.pruners.networks.scorer import Scorer
from visionpulse_analysis.testbed.heads import HEADS, catalogue, exits, relevance, selection
from visionpulse_analysis.testbed.heads.catalogue import (
    score_compressor,
    score_gates,
    score_scorer,
    score_step_gates,
    train_head,
)
from visionpulse_analysis.testbed.heads.fitting import fit
from visionpulse_analysis.testbed.heads.pairs import FIRST_CHECK_SEED, make_pairs, questions_of, straight_answer
from visionpulse_analysis.testbed.scenes.scene import generate
from visionpulse_analysis.testbed.training.batches import pack
from visionpulse_analysis.testbed.training.scoring import hidden_states

BUNDLED = sorted(path.name for path in (data_folder() / "heads").iterdir())


@pytest.fixture(scope="module")
def scenes():
    return vpa.load("scenes")


@pytest.fixture
def own(scenes, tmp_path):
    """An untrained head for the bundled model, written as a trained one."""
    save_head(Scorer.untrained(width=128), tmp_path / "own", {"model": scenes.weights_hash, "layer": 0})
    return tmp_path / "own"


class TestFiles:
    def test_the_bundled_heads_are_those_that_can_be_trained_and_are_small(self):
        assert set(BUNDLED) == set(HEADS)
        assert sum(path.stat().st_size for path in (data_folder() / "heads").rglob("*") if path.is_file()) < 4e6

    @pytest.mark.parametrize("name", BUNDLED)
    def test_a_head_belongs_to_the_bundled_model_and_says_how_it_was_trained(self, scenes, name):
        told = read_training(name)
        assert told["model"] == scenes.weights_hash
        assert told["scores"] and all(len(stage["loss"]) and stage["seconds"] > 0 for stage in told["stages"].values())
        assert ("stage 2" in told["stages"]) == ("trained anew" in told.get("history", ""))

    def test_another_model_is_refused_before_anything_is_decoded(self, vlm, pictures):
        with pytest.raises(
            ValueError, match=r"'covipal' was trained beside the model whose weights .* this one's have"
        ):
            vpa.decode(vlm, pictures[0], "where is the red circle ?", pruner=vpa.make_pruner("covipal"))

    def test_a_head_for_another_layer_or_of_another_kind_or_none_is_refused(self, scenes, pictures, own):
        for pruner, message in (
            ("covipal(layer=2)", "trained for layer 0, and covipal asks it for layer 2"),
            ("covipal(head='none')", "no trained head 'none'.*one of covipal"),
        ):
            with pytest.raises(ValueError, match=message):
                vpa.decode(scenes, pictures[0], "where is the red circle ?", pruner=vpa.make_pruner(pruner))
        told = json.loads((own / TRAINING).read_text())
        for change, message in (({"kind": "Gate"}, "is a Gate"), ({"shape": {"width": 64}}, "of another shape")):
            (own / TRAINING).write_text(json.dumps({**told, **change}))
            with pytest.raises(ValueError, match=message):
                load_head(Scorer, str(own), scenes.weights_hash)

    def test_kept_results_know_a_head_that_was_trained_anew(self, own, scenes):
        before = part_of_key(vpa.make_pruner("covipal", head=str(own)))
        assert before == part_of_key(vpa.make_pruner("covipal", head=str(own)))
        save_head(Scorer.untrained(seed=1, width=128), own, {"model": scenes.weights_hash, "layer": 0})
        assert before != part_of_key(vpa.make_pruner("covipal", head=str(own)))

    def test_an_untrained_head_is_the_same_each_time_and_no_head_moves_a_generator(self, own, scenes):
        at = torch.get_rng_state()
        load_head(Scorer, str(own), scenes.weights_hash)  # else no result of it would be kept
        first, second = (Scorer.untrained(width=16).state_dict() for _ in range(2))
        assert torch.equal(at, torch.get_rng_state())
        assert all(torch.equal(first[name], second[name]) for name in first)


class Tiny(Head):
    def __init__(self):
        super().__init__()
        self.layer = torch.nn.Linear(4, 1)


class TestFitting:
    @staticmethod
    def fitted(folder, *stops):
        head = Tiny.untrained()
        start = {name: value.clone() for name, value in head.state_dict().items()}

        def loss(step):
            rng = np.random.default_rng(step)
            x = torch.from_numpy(rng.normal(size=(8, 4)).astype(np.float32))
            return ((head.layer(x)[:, 0] - x.sum(dim=1)) ** 2).mean()

        for until in stops:
            head.load_state_dict(start)  # as a new process would begin
            state = fit(head, loss, folder, steps=30, rate=0.1, save_every=7, until=until, report=lambda line: None)
        return head.state_dict(), state

    def test_a_resumed_fit_equals_an_uninterrupted_one_bit_for_bit(self, tmp_path):
        whole, told = self.fitted(tmp_path / "whole", None)
        parts, told_in_parts = self.fitted(tmp_path / "parts", 11, 12, None)
        assert all(torch.equal(whole[name], parts[name]) for name in whole)
        assert told["loss"] == told_in_parts["loss"] and told["step"] == 30 and told["loss"][-1] < 3

    def test_a_loss_that_is_no_number_ends_it(self, tmp_path):
        head = Tiny.untrained()
        with pytest.raises(FloatingPointError, match="at step 0; lower the learning rate"):
            fit(head, lambda step: head.layer.weight.sum() * torch.nan, tmp_path, steps=2, rate=0.1)


class TestPairs:
    def test_attention_received_is_that_of_the_eager_model(self, scenes):
        """Row by row and question by question, without packing."""
        scene = generate(FIRST_CHECK_SEED, 4)
        pairs, model = make_pairs(scenes, FIRST_CHECK_SEED, 1, 4, layer=3, each=2), scenes.model
        model.set_attn_implementation({"text_config": "eager"})
        try:
            for number, question in enumerate(questions_of(scene, 2)):
                answer = [one.word for one in straight_answer(scene, question)][:-1]
                prompt = scenes.prompt(scene.render(), question.text)
                ids = torch.tensor(scenes.tokenizer.convert_tokens_to_ids(answer))
                inputs = scenes.family.batch([prompt.answered(ids)], 0)
                with torch.no_grad():
                    out = model(**inputs, output_attentions=True, output_hidden_states=True)
                places, end = prompt.grid.position, len(prompt.ids)
                for layer, weights in enumerate(out.attentions):
                    received = weights[0].sum(dim=0)[:, places]
                    asked = received[places[-1] + 1 : end].sum(dim=0)
                    torch.testing.assert_close(pairs.prompt_seen[number, layer], asked, rtol=1e-4, atol=1e-4)
                    said = received[end:].sum(dim=0)
                    torch.testing.assert_close(pairs.answer_seen[number, layer], said, rtol=1e-4, atol=1e-4)
                torch.testing.assert_close(pairs.states[0], out.hidden_states[3][0, places], rtol=1e-4, atol=1e-4)
                words = [scenes.tokenizer.decode(one) for one in prompt.ids[places[-1] + 2 :]]
                assert int(pairs.asked[number].sum()) == words.index("<|im_end|>") == len(question.text.split())
        finally:
            model.set_attn_implementation({"text_config": "sdpa"})

    def test_the_straight_answer_goes_to_what_is_asked_for(self):
        for seed in range(20):
            scene = generate(seed, 6)
            for question in questions_of(scene, 3):
                named = {one.object for one in straight_answer(scene, question) if one.object is not None}
                assert named == set(question.targets)


class TestSoftChoice:
    def test_it_keeps_half_of_the_last_patch_that_a_budget_keeps(self):
        scores = torch.randn(3, 40, generator=torch.Generator().manual_seed(0))
        for budget in (0.05, 0.25, 0.5):
            kept = selection.soft_choice(scores, budget, 0.25).exp()
            assert ((kept >= 0.5 - 1e-6).sum(dim=1) == round(budget * 40)).all()
            torch.testing.assert_close(kept, selection.soft_choice(5 * scores + 2, budget, 0.25).exp())

    def test_a_hard_choice_is_its_limit(self, scenes):
        """Scores far apart hide what they do not keep, and the answers get the loss of a prompt without it."""
        scene = generate(FIRST_CHECK_SEED, 4)
        [question] = questions_of(scene, 1)
        batch = pack([(scene, [(question, straight_answer(scene, question))])])
        order = torch.randperm(64, generator=torch.Generator().manual_seed(1)).float()[None]
        recipe = selection.Recipe(temperature=1e-6)

        def loss(added):
            softly = selection._Softly(lambda *given: order, batch, recipe, 0.25)
            with selection.intercept(scenes.model, softly), selection.watch_layers(scenes.model, softly):
                hidden = hidden_states(scenes.model, batch)[0, batch.target[0] != -100]
            return torch.log_softmax(scenes.model.lm_head(hidden), dim=-1)

        with torch.no_grad():
            soft = loss(order)
            gone = (batch.ids[0] == 6).nonzero()[:, 0][order[0] < 48]
            batch.visible[:, :, :, gone] = False
            batch.visible[:, :, gone, gone] = True
            hard = torch.log_softmax(
                scenes.model.lm_head(hidden_states(scenes.model, batch)[0, batch.target[0] != -100]), dim=-1
            )
        # The last one kept is kept by half: log 1/2 on one of sixteen.
        assert (soft - hard).abs().mean() < 0.15 < (hard.exp().max(dim=-1).values.mean())


class TestCoViPAL:
    def test_it_keeps_the_highest_scores_of_a_scorer_written_out_slowly(self, scenes, own):
        """One head at a time, one patch at a time, in float64."""
        from slow_scorer import slow_scores

        prompts = [
            (generate(seed, 4).render(), text)
            for seed, text in ((3, "where is the red circle ?"), (4, "how many red shapes ?"))
        ]
        traces = vpa.decode(
            scenes,
            *map(list, zip(*prompts, strict=True)),
            pruner=vpa.make_pruner("covipal(budget=0.2)"),
            max_new_tokens=2,
        )
        for (image, text), trace in zip(prompts, traces, strict=True):
            prompt = scenes.prompt(image, text)
            with torch.no_grad():
                hidden = scenes.model(**scenes.family.batch([prompt], 0), output_hidden_states=True).hidden_states[0][0]
            end = len(prompt.ids) - 4
            words = hidden[end - len(text.split()) : end]
            scorer, patches = load_head(Scorer, "covipal", scenes.weights_hash), hidden[prompt.grid.position]
            found = slow_scores(scorer, patches, words)
            there = torch.ones(1, len(patches), dtype=torch.bool), torch.ones(1, len(words), dtype=torch.bool)
            assert scorer(patches[None], words[None], *there)[0].numpy() == pytest.approx(found, rel=1e-3, abs=1e-3)
            assert set(np.flatnonzero(trace.kept.values[0])) == set(np.argsort(-found)[: round(0.2 * 64)])

    def test_stored_scores_are_those_of_the_weights_and_untrained_ones_are_far_from_them(self, scenes):
        stored, found = read_training("covipal")["scores"], score_scorer(scenes, "covipal")
        untrained = score_scorer(scenes, "untrained")
        for share in found["recall"]:
            assert found["recall"][share] == pytest.approx(stored["recall"][share], abs=0.03)
        assert found["find"] == pytest.approx(stored["find"], abs=0.07)
        assert untrained["find"] < 0.5 < 0.8 < found["find"]
        assert untrained["recall"]["0.05"]["find"] < 0.4 < 0.8 < found["recall"]["0.05"]["find"]

    def test_it_reads_the_question(self, scenes):
        """Of pictures with another question in its place, it keeps the patches of that one."""
        pairs = make_pairs(scenes, FIRST_CHECK_SEED, 8, 8, layer=0, each=3)
        finds = torch.arange(0, len(pairs), 3)  # one question of each picture
        other = torch.roll(finds, 1)
        scorer = load_head(Scorer, "covipal", scenes.weights_hash)
        present = torch.ones(8, 256, dtype=torch.bool)
        with torch.no_grad():
            own, moved = (
                scorer(pairs.states, pairs.words[at], present, pairs.asked[at]).topk(13, dim=1).indices
                for at in (finds, other)
            )
        held = [pairs.named[finds].gather(1, kept).sum(dim=1).float().mean() for kept in (own, moved)]
        assert held[0] > held[1] + 1  # of four patches

    def test_it_is_trained_from_the_command_and_goes_on_where_it_was(self, scenes, tmp_path, monkeypatch):
        short = selection.Recipe(
            images=((4, 2),), each=3, steps=30, batch=6, soft_steps=2, soft_images=2, soft_cells=(4,)
        )
        monkeypatch.setitem(catalogue.COVIPAL, "covipal", short)
        monkeypatch.setattr(catalogue, "score_scorer", lambda vlm, name: {})
        told = read_training(str(train_head(scenes, "covipal", tmp_path / "a", seed=3, report=lambda line: None)))
        first, second = told["stages"]["stage 1"], told["stages"]["stage 2"]
        assert (first["step"], second["step"], told["seed"], told["layer"]) == (30, 2, 3, 0)
        assert all(one.requires_grad for one in scenes.model.parameters())
        shutil.copytree(tmp_path / "a", tmp_path / "b")
        again = train_head(scenes, "covipal", tmp_path / "b", seed=3, report=lambda line: None)
        weights = [
            load_head(Scorer, str(folder / "covipal"), scenes.weights_hash).state_dict()
            for folder in (tmp_path / "a", tmp_path / "b")
        ]
        assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0]) and again.is_dir()
        with pytest.raises(ValueError, match="unknown head 'none'; known: covipal"):
            train_head(scenes, "none", tmp_path)


class TestRelevanceCNN:
    def test_it_keeps_the_highest_of_a_network_written_out_slowly(self, scenes):
        """Attention of the library's eager function; convolutions as sums over neighbours, in float64."""
        text, picture = "where is the red circle ?", generate(3, 4).render()
        prompt, model = scenes.prompt(picture, text), scenes.model
        model.set_attn_implementation({"text_config": "eager"})
        try:
            with torch.no_grad():
                attention = model(**scenes.family.batch([prompt], 0), output_attentions=True).attentions[0][0]
        finally:
            model.set_attn_implementation({"text_config": "sdpa"})
        end = len(prompt.ids) - 4
        seen = attention[:, end - len(text.split()) : end][..., prompt.grid.position].mean(dim=(0, 1)).double().numpy()
        for head in ("relevance", "untrained"):
            network = (
                Compressor.untrained() if head == "untrained" else load_head(Compressor, head, scenes.weights_hash)
            )
            weights = {name: value.double().numpy() for name, value in network.state_dict().items()}
            x = np.log(seen / seen.mean() + 1e-3)[None]
            for n in range(5):
                padded = np.pad(x, ((0, 0), (1, 1)))
                taps, bias = weights[f"depth.{n}.weight"][:, 0], weights[f"depth.{n}.bias"]
                x = sum(taps[:, k : k + 1] * padded[:, k : k + 64] for k in range(3)) + bias[:, None]
                x = np.maximum(weights[f"point.{n}.weight"][..., 0] @ x + weights[f"point.{n}.bias"][:, None], 0)
            found = (weights["last.weight"][0, :, 0] @ x) + weights["last.bias"]
            pruner = vpa.make_pruner("relevance_cnn", budget=0.25, head=head)
            # Beside a longer prompt, which pads this one.
            trace = vpa.decode(scenes, [picture] * 2, [text, "how many red shapes ?"], pruner=pruner, max_new_tokens=1)[
                0
            ]
            assert set(np.flatnonzero(trace.kept.values[0])) == set(np.argsort(-found)[:16])
        raw = vpa.make_pruner("relevance_cnn", budget=0.25, head="raw")
        trace = vpa.decode(scenes, picture, text, pruner=raw, max_new_tokens=1)
        assert set(np.flatnonzero(trace.kept.values[0])) == set(np.argsort(-seen)[:16])

    def test_its_target_is_the_upper_half_and_its_loss_is_least_there(self):
        found = torch.rand(4, 10, generator=torch.Generator().manual_seed(0))
        wanted = relevance.target(found)
        assert ((wanted > 0).sum(dim=1) == 5).all()
        torch.testing.assert_close(wanted.sum(dim=1), torch.ones(4))
        assert relevance.divergence(wanted.clamp(min=1e-12).log(), wanted).abs().max() < 1e-5
        assert (relevance.divergence(torch.full((4, 10), 0.1).log(), wanted) > 0).all()

    def test_stored_scores_are_those_of_the_weights(self, scenes):
        stored, found = read_training("relevance")["scores"], score_compressor(scenes, "relevance")
        for share in found["recall"]:
            assert found["recall"][share] == pytest.approx(stored["recall"][share], abs=0.03)
            assert found["raw recall"][share] == pytest.approx(stored["raw recall"][share], abs=0.03)


class TestDyVTE:
    @pytest.mark.parametrize("head", ["exits", "untrained"])
    def test_the_image_leaves_after_the_first_gate_that_says_so(self, scenes, head):
        """Every layer's states taken by a hook, of each prompt alone."""
        texts = ["where is the red circle ?", "how many red shapes ?", "is the red circle left of the blue star ?"]
        pictures = [generate(seed, 4).render() for seed in range(3)]
        traces = vpa.decode(
            scenes, pictures, texts, pruner=vpa.make_pruner("dyvte", head=head), layers="none", max_new_tokens=2
        )
        gates = (
            Gates.untrained(width=128, gates=7) if head == "untrained" else load_head(Gates, head, scenes.weights_hash)
        )
        layers = scenes.model.get_decoder().layers
        for picture, text, trace in zip(pictures, texts, traces, strict=True):
            prompt, states = scenes.prompt(picture, text), []
            hooks = [one.register_forward_pre_hook(lambda _, args, at=states: at.append(args[0][0])) for one in layers]
            try:
                with torch.no_grad():
                    scenes.model(**scenes.family.batch([prompt], 0))
            finally:
                for hook in hooks:
                    hook.remove()
            after = max(prompt.grid.position) + 1
            expected = 8
            for layer in range(7, 0, -1):
                feature = torch.cat([states[layer][after:-1].mean(dim=0), states[layer][-1]])
                hidden = torch.nn.functional.gelu(gates.up[layer - 1] @ feature)
                stay, leave = gates.down[layer - 1] @ hidden
                expected = layer if leave > stay else expected
            assert trace.k_per_layer.values[0].tolist() == [64] * expected + [0] * (8 - expected)

    def test_an_exit_is_free_where_withdrawal_changes_no_word_of_the_answer(self, scenes):
        scene = generate(FIRST_CHECK_SEED, 4)
        asked = questions_of(scene, 3)
        found = exits.exits(scenes, [(scene, asked)], floor=1e9)  # words alone decide
        strict = exits.exits(scenes, [(scene, asked)], floor=exits.Recipe().floor)
        assert not (strict.free & ~found.free).any() and len(found.free.unique()) == 2
        straight = [[one.word for one in straight_answer(scene, question)] for question in asked]
        for gate in range(7):
            traces = vpa.decode(
                scenes,
                [scene.render()] * 3,
                [one.text for one in asked],
                pruner=vpa.make_pruner("vtw", layer=gate + 1),
                layers="none",
                max_new_tokens=max(map(len, straight)),
            )
            same = [
                [token.strip() for token in trace.tokens] == words
                for trace, words in zip(traces, straight, strict=True)
            ]
            assert found.free[:, gate].tolist() == same

    def test_stored_scores_are_those_of_the_weights(self, scenes):
        stored, found = read_training("exits")["scores"], score_gates(scenes, "exits")
        assert found["free"] == pytest.approx(stored["free"], abs=0.03)
        assert found["left"] == pytest.approx(stored["left"], abs=0.05)


class TestStepGates:
    TEXTS = ("where is the red circle ?", "how many red shapes ?")

    def test_each_token_loses_the_image_after_the_first_gate_that_says_so_and_the_next_has_it_again(self, scenes):
        """Token by token with the library's cache; patches are hidden by a mask of its own at each layer."""
        gates, texts = load_head(StepGates, "exits-steps", scenes.weights_hash), list(self.TEXTS)
        pictures = [generate(seed, 4).render() for seed in range(2)]
        traces = vpa.decode(
            scenes, pictures, texts, pruner=vpa.make_pruner("dyvte_steps"), layers="none", max_new_tokens=24
        )
        model, layers = scenes.model, scenes.model.get_decoder().layers
        for picture, text, trace in zip(pictures, texts, traces, strict=True):
            prompt = scenes.prompt(picture, text)
            places, left, hidden = torch.from_numpy(prompt.grid.position.copy()), [], [False]

            def enter(number, options, states, places=places, left=left, hidden=hidden):
                hidden[0] = False if number == 0 else hidden[0]
                if number:
                    stay, leave = gates.down[number - 1] @ torch.nn.functional.gelu(
                        gates.up[number - 1] @ states[0, -1]
                    )
                    hidden[0] |= bool(leave > stay)
                left.append(0 if hidden[0] else 64)
                seen = options["past_key_values"].get_seq_length(0) + (number == 0)
                mask = torch.ones(1, 1, 1, seen, dtype=torch.bool)
                mask[..., places] = not hidden[0]
                return {**options, "attention_mask": mask}

            def entering(number, enter=enter):
                return lambda _, args, given: (args, enter(number, given, args[0])) if args[0].shape[1] == 1 else None

            hooks = [
                block.register_forward_pre_hook(entering(number), with_kwargs=True)
                for number, block in enumerate(layers)
            ]
            try:
                with torch.no_grad():
                    said = model.generate(
                        **scenes.family.batch([prompt], 0), max_new_tokens=len(trace.tokens), do_sample=False
                    )
            finally:
                for hook in hooks:
                    hook.remove()
            assert said[0, len(prompt.ids) :].tolist() == trace.token_ids.tolist()
            assert trace.k_per_layer.values[1:].tolist() == np.reshape(left, (-1, 8)).tolist()
        everywhere = np.concatenate([trace.k_per_layer.values[1:] for trace in traces])
        # The first layer sees the image again at the step after one that had lost it.
        assert (everywhere[:, -1] == 0).any() and everywhere[:, 0].all()
        assert len({int((seen > 0).sum()) for seen in everywhere}) > 1

    def test_a_token_s_exit_is_free_where_hiding_the_image_from_the_answer_changes_no_word(self, scenes):
        scene = generate(FIRST_CHECK_SEED, 4)
        asked = questions_of(scene, 2)
        found, owner = exits.step_exits(scenes, [(scene, asked)], floor=1e9)  # words alone decide
        strict, _ = exits.step_exits(scenes, [(scene, asked)], floor=exits.Recipe().floor)
        assert not (strict.free & ~found.free).any() and len(found.free.unique()) == 2
        model = scenes.model
        for number, question in enumerate(asked):
            prompt = scenes.prompt(scene.render(), question.text)
            words = [one.word for one in straight_answer(scene, question)]
            ids = torch.tensor(scenes.tokenizer.convert_tokens_to_ids(words[:-1]))
            inputs, places, end = scenes.family.batch([prompt.answered(ids)], 0), prompt.grid.position, len(prompt.ids)
            of_each, states = [], []
            for gate in range(8):

                def hide(call, gate=gate, places=places, end=end):
                    n = call.query.shape[2]
                    mask = torch.ones(n, n, dtype=torch.bool).tril()[None, None].clone()
                    if call.layer > gate:
                        mask[:, :, end:, torch.from_numpy(places.copy())] = False
                    return call.under(mask).run()

                with torch.no_grad(), exits.intercept(model, hide):
                    out = model(**inputs, output_hidden_states=True)
                of_each.append(out.logits[0, end:].argmax(dim=-1))
                states = out.hidden_states
            free = torch.stack([one == of_each[-1] for one in of_each[:-1]], dim=1)
            assert torch.equal(found.free[owner == number], free)
            text = torch.stack([one[0, end:] for one in states[1:8]], dim=1)
            torch.testing.assert_close(found.text[owner == number], text, rtol=1e-3, atol=1e-3)

    def test_stored_scores_are_those_of_the_weights_and_untrained_ones_are_far_from_them(self, scenes):
        stored, found = read_training("exits-steps")["scores"], score_step_gates(scenes, "exits-steps")
        assert found["free"] == pytest.approx(stored["free"], abs=0.01)
        assert found["balanced accuracy"] == pytest.approx(stored["balanced accuracy"], abs=0.02)
        assert found["find"] == pytest.approx(stored["find"], abs=0.07)
        untrained = score_step_gates(scenes, "untrained")
        assert max(untrained["balanced accuracy"]) < 0.65 < 0.8 < min(found["balanced accuracy"])
        assert untrained["find"] < 0.5 < found["find"]

    def test_gates_of_prompts_and_of_another_model_are_refused(self, scenes, vlm, pictures):
        for model, head, message in ((scenes, "exits", "is a Gates, and a StepGates"), (vlm, "exits-steps", "another")):
            with pytest.raises(ValueError, match=message if model is scenes else "was trained beside the model whose"):
                vpa.decode(model, pictures[0], self.TEXTS[0], pruner=vpa.make_pruner("dyvte_steps", head=head))

    def test_a_resumed_training_equals_an_uninterrupted_one_bit_for_bit(self, scenes, tmp_path):
        recipe = exits.Recipe(((4, 2),), each=2, steps=12, batch=8, per_token=True)
        whole, told = exits.train_gates(scenes, tmp_path / "a", recipe, 0, report=lambda line: None)
        data = exits.exit_data(scenes, recipe, tmp_path / "a")
        for until in (5, None):
            gates = StepGates.untrained(seed=0, width=128, gates=7)
            loss = exits.tell_exits(gates, data, recipe, 0)
            fit(gates, loss, tmp_path / "b", steps=12, rate=recipe.rate, until=until, report=lambda line: None)
        assert all(torch.equal(value, gates.state_dict()[name]) for name, value in whole.state_dict().items())
        assert told["fit"]["step"] == 12
