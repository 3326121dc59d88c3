"""The bundled model's vocabulary, tokenizer and chat template."""

from __future__ import annotations

from collections.abc import Sequence

from tokenizers import Tokenizer, models, normalizers, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from visionpulse_analysis.testbed.scenes.questions import RELATIONS
from visionpulse_analysis.testbed.scenes.scene import COLOURS, MAX_CELLS, SHAPES

SPECIAL = (
    "<|pad|>",
    "<|unk|>",
    "<|im_start|>",
    "<|im_end|>",
    "<|vision_start|>",
    "<|vision_end|>",
    "<|image_pad|>",
    "<|video_pad|>",
    "<think>",
    "</think>",
)
WORDS = (
    "system user assistant look at the picture , think step by then answer . where is ? of how many shapes describe "
    "for see yes no none more check so done"
)
SYSTEM_PROMPT = "look at the picture , think step by step , then answer ."


def vocabulary() -> list[str]:
    """All words of the bundled model in id order: special tokens, words, colours, shapes, places, numbers."""
    words = list(SPECIAL) + WORDS.split() + list(RELATIONS) + list(COLOURS) + list(SHAPES)
    words += [f"r{i}" for i in range(MAX_CELLS)] + [f"c{i}" for i in range(MAX_CELLS)]
    words += [str(i) for i in range(MAX_CELLS + 1)]
    return list(dict.fromkeys(words))


CHAT_TEMPLATE = (
    "{%- if messages[0].role != 'system' %}<|im_start|> system " + SYSTEM_PROMPT + " <|im_end|> {% endif -%}"
    "{%- for message in messages %}<|im_start|> {{ message.role }} "
    "{%- if message.content is string %} {{ message.content }} "
    "{%- else %}{%- for part in message.content %}"
    "{%- if part.type == 'image' %} <|vision_start|> <|image_pad|> <|vision_end|> "
    "{%- elif part.type == 'video' %} <|vision_start|> <|video_pad|> <|vision_end|> "
    "{%- elif part.type == 'text' %} {{ part.text }} {%- endif %}"
    "{%- endfor %}{%- endif %} <|im_end|> {% endfor -%}"
    "{%- if add_generation_prompt %}<|im_start|> assistant <think> {% endif -%}"
)


def build_tokenizer(words: Sequence[str] | None = None, system_prompt: str = SYSTEM_PROMPT) -> PreTrainedTokenizerFast:
    """Build the word-level tokenizer of ``words``, by default those of scenes, with its chat template."""
    ids = {word: index for index, word in enumerate(vocabulary() if words is None else words)}
    core = Tokenizer(models.WordLevel(ids, unk_token="<|unk|>"))
    core.normalizer = normalizers.Lowercase()
    core.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Punctuation()])
    return PreTrainedTokenizerFast(
        tokenizer_object=core,
        pad_token="<|pad|>",
        unk_token="<|unk|>",
        eos_token="<|im_end|>",
        additional_special_tokens=[s for s in SPECIAL if s not in ("<|pad|>", "<|unk|>", "<|im_end|>")],
        chat_template=CHAT_TEMPLATE.replace(SYSTEM_PROMPT, system_prompt),
        padding_side="left",
        clean_up_tokenization_spaces=False,
    )
