"""LoRA files that cannot be fused: those of another method or for another model."""

from __future__ import annotations

import re
from collections.abc import Iterable

from models.loading.weights_file import WeightsFile

_METHODS = (
    (r"\.hada_w", "a LyCORIS LoHa"),
    (r"\.lokr_", "a LyCORIS LoKr"),
    (r"\.oft_", "a LyCORIS OFT"),
    (r"\.a1\.weight$", "a LyCORIS GLoRA"),
    (r"\.on_input$", "a LyCORIS IA3"),
    (r"\.dora_scale$|\.lora_magnitude_vector", "a DoRA, which LyCORIS and peft make"),
    (r"\.(?:diff|diff_b|w_norm|b_norm|set_weight|bias)$", "a LyCORIS file that changes biases, "
     "norms or whole weights"),
)  # fmt: skip
_XL, _SD2 = "Stable Diffusion XL", "Stable Diffusion 2.x"
_MODELS = (
    (r"^lora_te2_|^text_encoder_2\.|\.clip_g$|add_embedding|label_emb", _XL),
    (r"joint_blocks", "Stable Diffusion 3"),
    (r"double_blocks|single_blocks|single_transformer_blocks", "Flux"),
    (r"^(?:lora_)?transformer[._]|^(?:lora_unet_|diffusion_model\.)blocks[._]",
     "a diffusion transformer such as Stable Diffusion 3, Flux or a video model"),
)  # fmt: skip
_READS_TEXT = re.compile(r"attn2[._]to_[kv].*\.(?:lora_down|lora_A(?:\.[^.]+)?|down)\.weight$")
_TEXT_WIDTHS = {1024: _SD2, 2048: _XL}


def other_method(names: Iterable[str]) -> str:
    """Return what a file is whose tensors are not those of a plain LoRA."""
    listed = list(names)
    for pattern, words in _METHODS:
        if any(re.search(pattern, name) for name in listed):
            return words
    return "a LyCORIS file of a method unknown here"


def other_model(file: WeightsFile) -> str | None:
    """Return the model a LoRA was made for where that is plainly not Stable Diffusion 1.x."""
    for name, tensor in file.tensors.items():
        for pattern, model in _MODELS:
            if re.search(pattern, name):
                return model
        if _READS_TEXT.search(name) and len(tensor.shape) > 1:
            model = _TEXT_WIDTHS.get(tensor.shape[1], "")
            if model:
                return model
    return None
