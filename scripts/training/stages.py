"""Stages of training: which stage reads and writes what under ``.training/``."""

from __future__ import annotations

import argparse
from pathlib import Path

import torch

from scripts.training.clip import finished_clip, make_tokenizer, text_tower, train_clip
from scripts.training.data import draw_scenes
from scripts.training.export import UNPACKING, export, unpack
from scripts.training.trainer import Plan
from scripts.training.unet import PHASES, train_unet
from scripts.training.vae import finished_vae, train_vae

STAGES = (
    "vae",  # the autoencoder
    "sharpen",  # its decoder alone, on latents that stay as they are
    "clip",  # tokenizer, text and image tower
    "unet",  # train a phase
    "export",  # write models/embedded
    "unpack",  # make checkpoints from models/embedded
    "all",
)


def run_stage(stage: str, options: argparse.Namespace) -> None:
    """Run one stage with the command line's options."""
    folder, device, minutes = options.folder, torch.device(options.device), options.minutes
    if stage == "vae":
        train_vae(folder / "vae", options.steps or 4500, minutes, device)
    elif stage == "sharpen":
        start_from(options.output, folder)
        train_vae(
            folder / "vae",
            options.steps,
            minutes,
            device,
            decoder_only=True,
            learning_rate=options.learning_rate or 3e-4,
            photographs=options.photographs,
        )
    elif stage == "clip":
        drawn = draw_scenes(9000, (96, 96), 4, styled=0.5)
        train_clip(
            folder / "clip", folder / "tokenizer", drawn, options.steps or 2500, minutes, device
        )
    elif stage == "export":
        export(folder, options.output, options.start_share)
    elif stage == "unpack":
        unpack(options.output, folder)
    else:
        for phase in PHASES if options.stage == "all" else [options.phase]:
            _unet(phase, options, device)


def start_from(shipped: Path, folder: Path) -> None:
    """Begin with what ships, where no stage has a checkpoint, or where that was cut off."""
    trained = any((folder / part / "checkpoint.pt").exists() for part in ("vae", "clip", "unet"))
    if not trained or (folder / UNPACKING).exists():
        unpack(shipped, folder)


def _unet(phase: str, options: argparse.Namespace, device: torch.device) -> None:
    folder = options.folder
    start_from(options.output, folder)
    vae = finished_vae(folder / "vae", device)
    tokenizer = make_tokenizer(folder / "tokenizer")
    text_encoder = text_tower(finished_clip(folder / "clip", tokenizer))
    plan = unet_plan(options)
    train_unet(folder / "unet", PHASES[phase], vae, text_encoder, tokenizer, plan, device)


def unet_plan(options: argparse.Namespace) -> Plan:
    """Return how a phase of the U-Net is trained. In `all` it goes by the minutes alone: the steps
    that both phases count are one number."""
    return Plan(
        None if options.stage == "all" else options.steps,
        options.learning_rate or 6e-4,
        warm_up=50,
        minutes=options.minutes,
        ema=options.ema,
        log_every=20,
    )
