"""Why a model cannot be loaded."""


class ModelLoadError(Exception):
    """The model cannot be loaded; the message says what is wrong and what to do."""
