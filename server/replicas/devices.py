"""How many engines this machine runs, and on what. No ray here."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from server.cpus import usable_cpus
from server.engine_service import StartError
from server.settings import Settings
from server.settings.engine import EngineSettings
from server.settings.model import ModelSettings

_ALSO = ("log_level", "log_format", "request_timeout")


@dataclass(frozen=True)
class Devices:
    """``count`` engines, each with ``gpus`` cards: 1, or 0 for the CPU."""

    count: int
    gpus: int


def devices_of(settings: Settings, cards: int) -> Devices:
    """Return what `IMG2IMG_DEVICES` asks for on a machine with so many cards. Raises StartError."""
    # An engine sees its own card alone, which is its first.
    if settings.device.startswith("cuda:") and settings.device != "cuda:0":
        raise StartError(
            f"IMG2IMG_DEVICE: {settings.device} is one card, where IMG2IMG_DEVICES asks for "
            f"{settings.devices}: leave it out, and name cards by CUDA_VISIBLE_DEVICES"
        )
    on_cpu = settings.device == "cpu" or (settings.device == "auto" and cards == 0)
    if settings.devices == "all":
        if on_cpu or cards == 0:
            raise StartError(
                "IMG2IMG_DEVICES: all, but there is no CUDA device; a number of engines on the CPU "
                "is taken"
            )
        return Devices(cards, 1)
    count = int(settings.devices)
    if on_cpu:
        return Devices(count, 0)
    if count > cards:
        raise StartError(f"IMG2IMG_DEVICES: {count}, but there are {cards} CUDA devices")
    return Devices(count, 1)


def replica_settings(settings: Settings, devices: Devices) -> dict[str, Any]:
    """Return the settings of each engine: those of model and device, and no secrets.

    Engines on a CPU share its cores.
    """
    names = {*ModelSettings.model_fields, *EngineSettings.model_fields, *_ALSO}
    given = {name: getattr(settings, name) for name in names & settings.model_fields_set}
    given |= {"data_dir": settings.data_dir, "replica_patience": settings.replica_patience}
    given |= {"devices": "", "ray_address": ""}
    if devices.gpus == 0:
        share = max(1, usable_cpus().count // devices.count)
        given |= {"device": "cpu", "threads": settings.threads or share}
    return given
