"""Loading models and reading images: what works, and one clear error for what does not."""

import copy
import json
import re
import shutil
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

import visionpulse_analysis as vpa
from visionpulse_analysis.media.images import read_image
from visionpulse_analysis.models.families import REFUSED, UnsupportedModelError, attention_of, check_supported


def test_a_layer_is_chosen_or_refused(vlm):
    assert (vlm.chosen_layer(-1), vlm.chosen_layer(5)) == (vlm.default_anchor, 5)
    for layer in (-2, vlm.n_layers):
        with pytest.raises(ValueError, match=f"layer {layer}: .* has layers 0 to {vlm.n_layers - 1}, and -1 stands"):
            vlm.chosen_layer(layer)


def test_a_loaded_model_says_what_it_is(vlm, scenes_folder):
    assert vlm.n_layers == 8 and vlm.default_anchor == 3
    assert vlm.model.config.text_config._attn_implementation == "sdpa" and not vlm.model.training
    html = vlm._repr_html_()
    assert "Qwen3VLForConditionalGeneration" in html and "default anchor layer" in html
    assert vpa.load(str(scenes_folder)).weights_hash == vlm.weights_hash


def test_a_loaded_model_computes_what_a_copy_of_it_does(scenes_folder, pictures):
    """To the last bit: products of a CPU depend on where weights lie, and in a mapped file they lie anywhere."""
    loaded = vpa.load(str(scenes_folder))
    copied = replace(loaded, model=copy.deepcopy(loaded.model))
    found, again = (vpa.decode(one, pictures[0], "where ?", max_new_tokens=3) for one in (loaded, copied))
    assert found.data_hash == again.data_hash
    assert all(weights.data_ptr() % 64 == 0 for weights in loaded.model.parameters())


def test_the_anchor_stated_in_the_configuration_wins(scenes_folder, tmp_path):
    copy = tmp_path / "anchored"
    shutil.copytree(scenes_folder, copy)
    config = json.loads((copy / "config.json").read_text())
    (copy / "config.json").write_text(json.dumps({**config, "visionpulse_anchor": 2}))
    assert vpa.load(str(copy)).default_anchor == 2


def test_changed_weights_change_the_hash(scenes_folder):
    other = vpa.load(str(scenes_folder))
    before = vpa.load(str(scenes_folder)).weights_hash
    other.model.lm_head.weight.data[0, 0] += 1
    assert other.weights_hash != before


def test_one_bright_cell_maps_to_its_patch(vlm):
    """Brightness of the pixels that reach each patch, against the patch's place in the grid."""
    for rows, cols in ((8, 8), (12, 16), (16, 6)):
        for row, col in ((0, 0), (rows - 1, 1), (2, cols - 1)):
            picture = np.zeros((rows * 8, cols * 8, 3), np.uint8)
            picture[row * 8 : row * 8 + 8, col * 8 : col * 8 + 8] = 255
            prompt = vlm.prompt(picture, "where ?")
            bright = int(prompt.inputs["pixel_values"].mean(dim=1).argmax())
            grid = prompt.grid
            assert grid.shape() == (rows, cols)
            assert (grid.row[bright], grid.col[bright]) == (row, col)
            assert grid.box[bright].tolist() == [col * 8, row * 8, col * 8 + 8, row * 8 + 8]
            assert (prompt.ids.numpy()[grid.position] == vlm.model.config.image_token_id).all()


def test_merged_patches_and_resized_images_keep_their_place(vlm):
    """Merge factor 2 and an image that the processor resizes: boxes stay in pixels of the original."""
    merged = vpa.VLM("merged", vlm.model, vlm.tokenizer, type(vlm.image_processor)(
        patch_size=8, temporal_patch_size=1, merge_size=2, size={"shortest_edge": 4096, "longest_edge": 16384},
        image_mean=[0.5] * 3, image_std=[0.5] * 3,
    ))  # fmt: skip
    picture = np.zeros((256, 512, 3), np.uint8)
    picture[64:128, 384:448] = 255
    prompt = merged.prompt(picture, "where ?")
    rows, cols = prompt.grid.shape()
    assert rows * cols == len(prompt.grid) and rows * cols * 4 == int(prompt.inputs["image_grid_thw"].prod())
    brightness = prompt.inputs["pixel_values"].reshape(len(prompt.grid), -1).mean(dim=1)
    left, top, right, bottom = prompt.grid.box[int(brightness.argmax())]
    assert left < 448 and right > 384 and top < 128 and bottom > 64
    assert prompt.grid.box[:, 2].max() == 512 and prompt.grid.box[:, 3].max() == 256


def test_the_image_changes_the_answer_of_a_model(vlm, pictures):
    a, b = (vpa.decode(vlm, picture, "where ?", max_new_tokens=1) for picture in (pictures[0], 255 - pictures[0]))
    assert a.logprobs[0] != b.logprobs[0]


class TestBadModels:
    def test_unknown_names(self):
        with pytest.raises(ValueError, match=r"no model 'no/such-model'.*'scenes'.*folder.*hub id"):
            vpa.load("no/such-model")

    def test_a_text_only_model(self, tmp_path):
        from transformers import Qwen3Config

        Qwen3Config(hidden_size=16, num_hidden_layers=1).save_pretrained(tmp_path)
        with pytest.raises(UnsupportedModelError, match="without a vision part"):
            vpa.load(str(tmp_path))

    def test_another_family(self, tmp_path):
        from transformers import MllamaConfig

        MllamaConfig().save_pretrained(tmp_path)
        with pytest.raises(UnsupportedModelError, match=r"family 'mllama', where .* by cross-attention"):
            vpa.load(str(tmp_path))

    @pytest.mark.parametrize("kind", REFUSED)
    def test_a_refused_family_says_why(self, kind):
        with pytest.raises(UnsupportedModelError, match=rf"'mine' is of family '{kind}', where {REFUSED[kind]}"):
            check_supported(SimpleNamespace(model_type=kind), "mine")

    def test_caps_and_sinks_run_under_eager_attention(self):
        from transformers import Gemma3Config, GptOssConfig, InternVLConfig

        config = Gemma3Config()
        assert attention_of(config) == "sdpa"
        config.text_config.attn_logit_softcapping = 50.0
        assert attention_of(config) == "eager"
        assert attention_of(InternVLConfig(text_config=GptOssConfig(num_hidden_layers=2))) == "eager"

    def test_a_missing_bundled_model(self, tmp_path, monkeypatch):
        monkeypatch.setenv("VISIONPULSE_DATA", str(tmp_path))
        with pytest.raises(ValueError, match="VISIONPULSE_DATA"):
            vpa.load("scenes")

    def test_broken_weights(self, scenes_folder, tmp_path):
        shutil.copytree(scenes_folder, tmp_path / "broken")
        weights = tmp_path / "broken" / "model.safetensors"
        weights.write_bytes(weights.read_bytes()[:1000])
        with pytest.raises(ValueError, match=r"weights of .*broken.* cannot be read"):
            vpa.load(str(tmp_path / "broken"))

    @pytest.mark.parametrize("fault", ["renamed", "missing", "left over", "of another shape", "a layer less"])
    def test_tensors_that_do_not_arrive_are_named(self, scenes_folder, tmp_path, fault):
        folder = tmp_path / "odd"
        shutil.copytree(scenes_folder, folder)
        tensors = load_file(folder / "model.safetensors")
        name = next(name for name in tensors if name.endswith("layers.2.self_attn.q_proj.weight"))
        stem = name.removesuffix("self_attn.q_proj.weight")
        said = [re.escape(name.removeprefix("model."))]
        if fault == "renamed":
            tensors[f"{stem}attention.query.weight"] = tensors.pop(name)
            said = ["1 missing.*", *said, ".*1 left over.*", re.escape("attention.query.weight")]
        elif fault == "missing":
            del tensors[name]
        elif fault == "left over":
            tensors[f"{stem}self_attn.gate.weight"] = tensors[name].clone()
            said = ["1 left over.*self_attn.gate.weight"]
        elif fault == "of another shape":
            tensors[name] = tensors[name][:-8].clone()
            said = ["1 of another shape.*", *said]
        else:
            config = json.loads((folder / "config.json").read_text())
            config["text_config"]["num_hidden_layers"] -= 1
            config["text_config"].pop("layer_types", None)
            (folder / "config.json").write_text(json.dumps(config))
            said = [r"left over.*layers\.7\..* and \d+ more"]
        save_file(tensors, folder / "model.safetensors", {"format": "pt"})
        with pytest.raises(ValueError, match="do not fit its config.json: tensors .*" + "".join(said)):
            vpa.load(str(folder))

    @pytest.mark.parametrize(
        "extra",
        [
            "mtp.layers.0.self_attn.q_proj.weight",  # predicts further tokens, as a part of its own
            "model.language_model.layers.8.eh_proj.weight",  # or behind the last layer
            "model.language_model.layers.0.self_attn.rotary_emb.inv_freq",
            "model.language_model.layers.0.self_attn.k_scale",
            "model.visual.head.attention.in_proj_weight",
            "talker.model.layers.0.mlp.up_proj.weight",
            "logit_scale",
        ],
    )
    def test_parts_that_the_model_has_none_of_are_told(self, scenes_folder, tmp_path, vlm, caplog, extra):
        folder = tmp_path / "published"
        shutil.copytree(scenes_folder, folder)
        config = json.loads((folder / "config.json").read_text())
        config["text_config"]["num_nextn_predict_layers"] = 1
        (folder / "config.json").write_text(json.dumps(config))
        tensors = load_file(folder / "model.safetensors")
        save_file({**tensors, extra: torch.ones(4)}, folder / "model.safetensors", {"format": "pt"})
        assert vpa.load(str(folder)).weights_hash == vlm.weights_hash
        by_itself = extra.endswith("inv_freq")  # which the library passes over
        assert by_itself or f"1 tensors of parts that the model does not have: {extra}" in caplog.text

    @pytest.mark.parametrize(
        "extra",
        [
            "model.language_model.layers.0.self_attn.q_proj.bias",
            "model.language_model.layers.0.self_attn.q_proj.weight_scale",  # a weight that stands for others
            "model.language_model.layers.8.mlp.up_proj.weight",
            "model.visual.merger.norm.gain",
            "lm_head.bias",
        ],
    )
    def test_what_its_layers_would_need_is_no_such_part(self, scenes_folder, tmp_path, extra):
        shutil.copytree(scenes_folder, tmp_path / "odd")
        weights = tmp_path / "odd" / "model.safetensors"
        save_file({**load_file(weights), extra: torch.ones(4)}, weights, {"format": "pt"})
        with pytest.raises(ValueError, match="1 left over, with no place in the model: " + re.escape(extra)):
            vpa.load(str(tmp_path / "odd"))

    def test_tied_weights_need_not_be_there_twice(self, scenes_folder, tmp_path, vlm):
        shutil.copytree(scenes_folder, tmp_path / "tied")
        path = tmp_path / "tied" / "config.json"
        config = json.loads(path.read_text())
        config["tie_word_embeddings"] = config["text_config"]["tie_word_embeddings"] = True
        path.write_text(json.dumps(config))
        tensors = load_file(tmp_path / "tied" / "model.safetensors")
        tensors.pop("lm_head.weight", None)
        save_file(tensors, tmp_path / "tied" / "model.safetensors", {"format": "pt"})
        model = vpa.load(str(tmp_path / "tied")).model
        assert torch.equal(model.lm_head.weight, model.get_input_embeddings().weight)

    def test_what_the_library_lets_be_missing_may_be(self, scenes_folder, tmp_path, vlm, monkeypatch):
        shutil.copytree(scenes_folder, tmp_path / "benign")
        tensors = load_file(tmp_path / "benign" / "model.safetensors")
        name = next(name for name in tensors if name.endswith("layers.2.self_attn.q_proj.weight"))
        tensors["old.buffer"] = tensors.pop(name)
        save_file(tensors, tmp_path / "benign" / "model.safetensors", {"format": "pt"})
        kind = type(vlm.model)
        monkeypatch.setattr(kind, "_keys_to_ignore_on_load_missing", [r"layers\.2\.self_attn\.q_proj"])
        monkeypatch.setattr(kind, "_keys_to_ignore_on_load_unexpected", [r"^old\."])
        assert vpa.load(str(tmp_path / "benign")).n_layers == vlm.n_layers


class TestImages:
    def test_missing(self, vlm, tmp_path):
        with pytest.raises(FileNotFoundError, match=r"no image at .*nothing\.png"):
            vpa.decode(vlm, tmp_path / "nothing.png", "where ?")

    @pytest.mark.parametrize("content", [b"", b"not an image", b"\x89PNG\r\n\x1a\n" + b"x" * 50])
    def test_corrupt(self, vlm, tmp_path, content):
        path = tmp_path / "bad.png"
        path.write_bytes(content)
        with pytest.raises(ValueError, match=r"bad\.png is not a readable image"):
            vpa.decode(vlm, path, "where ?")

    def test_truncated(self, tmp_path):
        path = tmp_path / "cut.png"
        Image.fromarray(np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.uint8)).save(path)
        path.write_bytes(path.read_bytes()[:2000])
        with pytest.raises(ValueError, match="not a readable image"):
            read_image(path)

    def test_transparency_becomes_white_and_orientation_is_applied(self, tmp_path):
        clear = Image.new("RGBA", (8, 8), (255, 0, 0, 0))
        assert (read_image(clear) == 255).all()
        turned = Image.new("RGB", (8, 16), "red")
        exif = turned.getexif()
        exif[0x0112] = 6
        turned.save(tmp_path / "turned.jpg", exif=exif)
        assert read_image(tmp_path / "turned.jpg").shape == (8, 16, 3)

    @pytest.mark.parametrize("mode", ["L", "1", "P", "CMYK", "I;16", "LA"])
    def test_other_modes(self, mode):
        picture = Image.new(mode, (8, 8))
        assert read_image(picture).shape == (8, 8, 3) and read_image(picture).dtype == np.uint8

    def test_sixteen_bit_keeps_its_greys(self):
        picture = Image.fromarray(np.array([[0, 32768, 65535]] * 3, dtype=np.uint16))
        assert read_image(picture)[0, :, 0].tolist() == [0, 128, 255]
        greys = np.arange(256, dtype=np.uint16)
        assert read_image(Image.fromarray(257 * greys[None]))[0, :, 0].tolist() == greys.tolist()

    def test_a_path_and_its_pixels_give_the_same_trace(self, vlm, pictures, tmp_path):
        Image.fromarray(pictures[0]).save(tmp_path / "scene.png")
        by_path = vpa.decode(vlm, tmp_path / "scene.png", "where ?", max_new_tokens=3)
        assert by_path.data_hash == vpa.decode(vlm, pictures[0], "where ?", max_new_tokens=3).data_hash
        by_path, by_pixels = (vlm.prompt(image, "a").inputs for image in (str(tmp_path / "scene.png"), pictures[0]))
        assert torch.equal(by_path["pixel_values"], by_pixels["pixel_values"])
