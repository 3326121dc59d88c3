"""What a model's own generation configuration asks of decoding, by the library's own rules."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch

# What changes the logits of a greedy decode, and what ends one.
RULES = (
    *("sequence_bias", "repetition_penalty", "no_repeat_ngram_size", "bad_words_ids", "min_length", "min_new_tokens"),
    *("forced_bos_token_id", "forced_eos_token_id", "remove_invalid_values", "exponential_decay_length_penalty"),
    *("suppress_tokens", "begin_suppress_tokens"),
    *("encoder_repetition_penalty", "encoder_no_repeat_ngram_size"),  # of the prompt, where there is no encoder
)
STOPS = ("stop_strings",)
DRAWING = ("do_sample", "temperature", "top_p", "top_k")
TOP_K = 50  # of the library, where a model that samples states none
# What says nothing about which tokens come: where things are kept, what is returned, what `decode` is told itself.
ASIDE = (
    *("transformers_version", "_from_model_config", "bos_token_id", "eos_token_id", "pad_token_id"),
    *("decoder_start_token_id", "max_length", "max_new_tokens", "use_cache", "cache_implementation", "cache_config"),
    *("return_dict_in_generate", "num_return_sequences", "disable_compile", "compile_config", "prefill_chunk_size"),
)


class Generation:
    """The generation configuration of a model, as far as it is more than the tokens that end a trace.

    Attributes
    ----------
    applied : dict, the settings that decoding follows, by the library's names; JSON-ready
    drawing : dict, how the model says that tokens are drawn, which is followed unless a decode says otherwise; {} where
    it says nothing, or that the likeliest is taken
    left_out : dict, the others: search in beams, guidance, other ways to draw
    """

    def __init__(self, model: Any, tokenizer: Any):
        self.model, self.tokenizer = model, tokenizer
        self.config = getattr(model, "generation_config", None)
        stated = {} if self.config is None else self.config.to_diff_dict()
        stated = {
            name: _plain(value)
            for name, value in stated.items()
            if value not in (None, [], {}) and name not in ASIDE and not name.startswith("output_")
        }
        self.applied = {name: value for name, value in stated.items() if name in (*RULES, *STOPS)}
        draws = stated.get("do_sample") is True
        self.drawing = {name: value for name, value in stated.items() if draws and name in DRAWING}
        self.left_out = {name: value for name, value in stated.items() if name not in {**self.applied, **self.drawing}}

    @property
    def max_new_tokens(self) -> int | None:
        """The limit that the model states, where it does."""
        return getattr(self.config, "max_new_tokens", None)

    @property
    def drawn(self) -> dict[str, Any] | None:
        """Temperature, top_p and top_k at which the model says that tokens are drawn; None where the likeliest is."""
        if not self.drawing:
            return None
        top_k = self.drawing.get("top_k", getattr(self.config, "top_k", None))
        top_k = TOP_K if top_k is None else int(top_k)
        warmth, share = (float(self.drawing.get(name, 1.0)) for name in ("temperature", "top_p"))
        return {"temperature": warmth, "top_p": share, "top_k": top_k if top_k > 0 else None}

    @property
    def shapes_logits(self) -> bool:
        """Whether it changes what is chosen at a step."""
        return any(name in RULES for name in self.applied)

    def rules(self, prompt: torch.Tensor, limit: int, device: Any) -> Rules:
        """The rules for one row, with ``prompt`` int64 [token] unpadded, and at most ``limit`` tokens to come."""
        config: Any = copy.deepcopy(self.config)
        given = dict.fromkeys((name for name in {**self.left_out, **self.drawing} if hasattr(config, name)), None)
        config.update(**given)
        config.update(do_sample=False, num_beams=1, max_length=len(prompt) + limit)
        if config.pad_token_id is None:
            config.pad_token_id = 0  # else the library warns that it takes another
        if config.eos_token_id is None:
            config.eos_token_id = self.tokenizer.eos_token_id
        self.model._prepare_special_tokens(config, device=device)
        prompt = prompt.to(device)
        processors = self.model._get_logits_processor(
            config, input_ids_seq_length=len(prompt), encoder_input_ids=prompt[None], device=device
        )
        return Rules(processors, prompt, limit)

    @property
    def stop_strings(self) -> list[str]:
        """Texts that end a trace; decoding looks for them in the text, whatever the tokenizer cuts it into."""
        asked = self.applied.get("stop_strings", [])
        return [asked] if isinstance(asked, str) else asked


class Rules:
    """The library's logits processors for one row, alone: a batch and a row that joins it later change nothing."""

    def __init__(self, processors: Callable[..., torch.Tensor], prompt: torch.Tensor, limit: int):
        self.processors, self.length = processors, len(prompt)
        self.ids = torch.nn.functional.pad(prompt, (0, limit))[None]

    def __call__(self, logits: torch.Tensor) -> torch.Tensor:
        """The logits float32 [1, word] of the next token, changed."""
        return self.processors(self.ids[:, : self.length], logits.clone())

    def add(self, token: torch.Tensor) -> None:
        """Take the token int64 [1] that was chosen."""
        if self.length < self.ids.shape[1]:  # rows that have ended run on until the others have
            self.ids[:, self.length] = token
        self.length += 1


def _plain(value: Any) -> Any:
    """As JSON has it: keys that are tokens as text, and configurations inside (of a watermark) as what they hold."""
    value = value.to_dict() if hasattr(value, "to_dict") else value
    if isinstance(value, dict):
        return {str(key): _plain(inner) for key, inner in value.items()}
    return [_plain(inner) for inner in value] if isinstance(value, list | tuple | set) else value
