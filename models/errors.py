"""Errors of loading a model, and what any error says."""


def first_line(error: BaseException) -> str:
    """Return what an error says, in one line: its kind, where it says nothing."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


class ModelLoadError(Exception):
    """The model cannot be loaded; the message says what is wrong and what to do."""


class HubUnreachable(ModelLoadError):
    """A hub id is not in the local cache, and the hub cannot be asked; ``reason`` says why."""

    def __init__(self, model: str, reason: str) -> None:
        super().__init__(
            f"{model!r} is not in the local cache, or not in float32 where that is asked for, and "
            f"the hub cannot be reached ({reason}). Fetch it with `img2img models pull {model}` on "
            "a connected machine, name a local folder or file, or set another IMG2IMG_DTYPE"
        )
        self.reason = reason
