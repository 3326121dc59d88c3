"""Tokens as pieces of one text: SentencePiece and byte-level tokenizers, finished and cut streams, stored traces."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import tiny_models
import tiny_parts
import torch
import transformers as hf
from tokenizers import Tokenizer, decoders, models

import visionpulse_analysis as vpa
from visionpulse_analysis.decoding.sampling import Chooser
from visionpulse_analysis.explorer.payload import pack
from visionpulse_analysis.models.token_text import Decoder

WORDS = ["▁the", "▁red", "▁cat", "s", "▁is", "▁on", "▁a", "▁mat", ".", "▁"]
BYTES = [f"<0x{byte:02X}>" for byte in range(256)]
SAID = "▁the ▁red ▁cat s ▁is ▁on ▁a ▁mat . <0xE4> <0xBD> <0xA0>".split()


def sentencepiece() -> hf.PreTrainedTokenizerFast:
    """Words with marks for spaces, and bytes for everything else."""
    words = [*tiny_parts.MARKS, "<image>", *BYTES, *WORDS]
    core = Tokenizer(models.BPE({word: i for i, word in enumerate(words)}, [], byte_fallback=True))
    parts = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    core.decoder = decoders.Sequence(parts)
    marks: dict = {"bos_token": "<bos>", "eos_token": "<end>", "pad_token": "<pad>"}
    return hf.PreTrainedTokenizerFast(
        tokenizer_object=core, **marks, extra_special_tokens={"image_token": "<image>"}
    )  # fmt: skip


@pytest.mark.parametrize("made", [sentencepiece, lambda: tiny_parts.tokenizer({}, "")], ids=["words", "bytes"])
def test_pieces_joined_are_the_whole_text(made, rng):
    words = made()
    decoder, kinds = Decoder(words), list("é你🙂한 a")
    # Where a byte spoils a run of bytes, SentencePiece calls all of it unreadable; pieces keep what was read before.
    others = [i for word, i in words.get_vocab().items() if word not in BYTES]
    for _ in range(300):
        ids = rng.choice(others, rng.integers(0, 12)).tolist()
        for letter in rng.choice(kinds, 3):
            ids += words(letter, add_special_tokens=False).input_ids
        ids += rng.choice(others, rng.integers(0, 3)).tolist()
        assert "".join(decoder.pieces(ids)) == words.decode(ids, clean_up_tokenization_spaces=False)


def test_each_token_has_its_spaces_and_a_character_comes_with_its_last_byte():
    words = sentencepiece()
    pieces = Decoder(words).pieces(words.convert_tokens_to_ids(SAID))
    assert pieces == ["the", " red", " cat", "s", " is", " on", " a", " mat", ".", "", "", "你"]
    assert Decoder(words).pieces(words.convert_tokens_to_ids(SAID[:-1]))[-3:] == [".", "", "\ufffd\ufffd"]


def test_short_passages_are_decoded_once(monkeypatch):
    words, asked = sentencepiece(), []
    decode = words.decode
    monkeypatch.setattr(words, "decode", lambda ids, **options: asked.append(ids) or decode(ids, **options))
    decoder = Decoder(words)
    ids = words.convert_tokens_to_ids(SAID)
    assert decoder.pieces(ids) == decoder.pieces(ids) and len(asked) == len({tuple(one) for one in asked})


@pytest.fixture
def saying(tmp_path, monkeypatch):
    """A tiny LLaVA with that tokenizer, made to say these words; it breaks after the last."""
    tiny = tiny_models.build("llava")
    words = sentencepiece()
    words.chat_template = (
        "{% for part in messages[0].content %}{{ '<image>' if part.type == 'image' else part.text }}{% endfor %}"
    )
    tiny.model.resize_token_embeddings(len(words))
    tiny.model.config.image_token_id = words.convert_tokens_to_ids("<image>")
    tiny.tokenizer = words
    tiny.model.save_pretrained(tmp_path / "model")
    words.save_pretrained(tmp_path / "model")
    tiny.image_processor.save_pretrained(tmp_path / "model")

    def says(listed):
        ids: Any = words.convert_tokens_to_ids(listed)
        coming = iter(ids)
        monkeypatch.setattr(Chooser, "__call__", lambda *given: torch.tensor([next(coming)]))

    return vpa.load(str(tmp_path / "model")), says


def test_a_cut_stream_is_read_as_it_was_written(saying, tmp_path):
    vlm, says = saying
    store, picture = vpa.TraceStore(tmp_path / "store", mode="a"), np.zeros((32, 32, 3), np.uint8)
    says(SAID)
    with pytest.raises(RuntimeError, match="StopIteration"):
        vpa.decode(vlm, picture, "cats", store=store, ids="cut", max_new_tokens=50)
    assert store["cut"].meta["complete"] is False
    assert store["cut"].text == "".join(store["cut"].tokens) == "the red cats is on a mat.你"
    labels = pack(store["cut"])["traces"][0]["tokens"]
    assert "".join(labels) == store["cut"].text


@pytest.mark.parametrize("said, ending", [(SAID, "你"), (SAID[:-1], "\ufffd\ufffd"), ([*SAID, "<end>"], "你<end>")])
def test_a_finished_trace_is_its_tokens_joined(saying, tmp_path, said, ending):
    vlm, says = saying
    store, picture = vpa.TraceStore(tmp_path / "store", mode="a"), np.zeros((32, 32, 3), np.uint8)
    for options in ({}, {"store": store, "ids": "whole"}):
        says(said)
        trace = vpa.decode(vlm, picture, "cats", max_new_tokens=len(said), **options)
        assert trace.text == "".join(trace.tokens) == f"the red cats is on a mat.{ending}"
        assert trace.text == vlm.tokenizer.decode(trace.token_ids)
        assert trace.answer == trace.text.removesuffix("<end>") and trace.meta["end_tokens"] == ["<end>"]
    assert store["whole"].text == "".join(store["whole"].tokens) == trace.text
