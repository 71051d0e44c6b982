"""Errors of loading a model."""


class ModelLoadError(Exception):
    """The model cannot be loaded; the message says what is wrong and what to do."""


class HubUnreachable(ModelLoadError):
    """A hub id is not in the local cache, and the hub cannot be asked; ``reason`` says why."""

    def __init__(self, model: str, reason: str) -> None:
        super().__init__(
            f"{model!r} is not in the local cache and the hub cannot be reached ({reason}). "
            f"Fetch it with `img2img models pull {model}` on a connected machine, or name a local "
            "folder or file"
        )
        self.reason = reason
