"""What the tiny models are made of: tokenizer, text configuration, vision tower.

The tokenizer knows every byte and the family's marks, nothing else: two prompts that differ in one character have
different ids.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

import transformers as hf
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors

PATCH = 4  # pixels along one side of a patch of the vision tower
MARKS = ("<pad>", "<bos>", "<end>")


@dataclass
class Tiny:
    """A model with what turns pictures and text into its inputs.

    processor : the library's, which does both at once; a class where its video half needs torchvision, None where all
    of it does. video : what its files say about its video processor, and the name of that; None where it has none.
    """

    model: Any
    tokenizer: Any
    image_processor: Any
    processor: Any
    video: tuple[str, dict[str, Any]] | None = None

    def save(self, folder) -> None:
        self.model.save_pretrained(folder)
        self.tokenizer.save_pretrained(folder)
        self.image_processor.save_pretrained(folder)
        self._save_processor(folder)
        if self.video is not None:
            (folder / "video_preprocessor_config.json").write_text(json.dumps(self.video[1]), "utf-8")

    def _save_processor(self, folder) -> None:
        """As models of the hub have it; only its name where it cannot be made here."""
        made = self.processor
        try:
            made = made if isinstance(made, hf.ProcessorMixin) else made(self.image_processor, self.tokenizer)
        except (ImportError, AttributeError, TypeError, ValueError):  # its video half needs torchvision
            name = "PixtralProcessor" if made is None else getattr(made, "func", made).__name__
            settings = {"processor_class": name, **getattr(made, "keywords", {})}
            (folder / "processor_config.json").write_text(json.dumps(settings), "utf-8")
        else:
            made.save_pretrained(folder)


def tokenizer(marks: dict[str, str], turn: str, begins: bool = True, clip: str = "<video>") -> Any:
    """Bytes, the family's marks by name, and a chat template: ``turn`` and ``clip`` are what it writes for one picture
    and for one video.

    The tokenizer puts the first token before every text; ``begins`` tells whether the template writes it as well.
    """
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    words = [*MARKS, *dict.fromkeys(marks.values()), *letters]
    core = Tokenizer(models.BPE({word: i for i, word in enumerate(words)}, []))
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    core.post_processor = processors.TemplateProcessing(single="<bos> $A", special_tokens=[("<bos>", 1)])
    template = (
        ("<bos>" if begins else "")
        + "{% for message in messages %}{{ message.role }}: {% for part in message.content %}"
        "{% if part.type == 'image' %}"
        + turn
        + "{% elif part.type == 'video' %}"
        + clip
        + "{% elif part.type == 'text' %}"
        "{{ part.text }}{% endif %}{% endfor %}\n{% endfor %}"
        "{% if add_generation_prompt %}assistant: {% endif %}"
    )
    return hf.PreTrainedTokenizerFast(
        tokenizer_object=core,
        pad_token="<pad>",
        bos_token="<bos>",
        eos_token="<end>",
        extra_special_tokens=marks,
        chat_template=template,
        padding_side="left",
        clean_up_tokenization_spaces=False,
    )


def text(words: Any, **extra: Any) -> Any:
    return {
        "vocab_size": len(words), "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 4,
        "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8, "max_position_embeddings": 4096,
        "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, **extra,
    }  # fmt: skip


def tower(image_size: int, **extra: Any) -> Any:
    return {
        "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2,
        "patch_size": PATCH, "image_size": image_size, **extra,
    }  # fmt: skip
