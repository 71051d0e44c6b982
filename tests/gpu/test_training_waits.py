"""What a step of the training asks of a card: never to be waited for."""

from __future__ import annotations

import pytest
import torch
from transformers import CLIPTokenizer

from scripts.paths import ROOT
from scripts.training.pairs import CHUNK, Feed, Phase
from scripts.training.unet import alphas_cumprod, with_ghosts
from scripts.training.vae import make_vae


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
def test_pairs_and_their_noise_are_made_without_a_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("scripts.training.pairs.DataLoader", lambda stream, **_: stream)
    monkeypatch.setattr("scripts.training.pairs.FILL", 1)
    card = torch.device("cuda")
    tokenizer = CLIPTokenizer.from_pretrained(ROOT / "models" / "embedded" / "tokenizer")
    vae, abar = make_vae().to(card).eval(), alphas_cumprod().float().to(card)
    phase = Phase("tiny", (((64, 64), 1.0),), CHUNK, CHUNK)
    feed, generator = Feed(phase, vae, tokenizer, card, seed=3), torch.Generator(card)
    t = torch.arange(CHUNK, device=card)
    torch.cuda.set_sync_debug_mode("error")  # type: ignore[no-untyped-call]
    try:
        batch = feed.take(generator)
        noise = torch.randn(batch.latents.shape, device=card, generator=generator)
        noise = with_ghosts(noise, batch.latents, batch.earlier, t, t > 8, abar, generator)
    finally:
        torch.cuda.set_sync_debug_mode("default")  # type: ignore[no-untyped-call]
    assert torch.isfinite(noise).all()
