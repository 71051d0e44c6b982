"""The LDM configuration beside a checkpoint, ``NAME.yaml``, by which A1111 is told of it.

One value of it is read. It comes from whoever made the file: it is parsed and never constructed,
since tags name Python's objects, and merges of merges grow without end.
"""

from __future__ import annotations

from pathlib import Path

import yaml

from models.errors import ModelLoadError, first_line

_MOST_BYTES = 64 * 2**10
_WHERE = ("model", "params", "parameterization")
_PREDICTIONS = {"eps": "epsilon", "v": "v_prediction"}
_NULL = "tag:yaml.org,2002:null"


def prediction_beside(checkpoint: Path) -> tuple[str, str] | None:
    """(what the U-Net predicts, the file that says so), None where none does.

    Raises ModelLoadError for a file that cannot be read, or says what is not understood.
    """
    path = checkpoint.with_suffix(".yaml")
    if not path.is_file():
        return None
    try:
        said = _said(path)
        if said is not None and said not in _PREDICTIONS:
            raise ValueError(f"its parameterization {said[:80]!r} is not eps or v")
    except (OSError, ValueError, RecursionError, yaml.YAMLError) as error:
        raise ModelLoadError(
            f"{path}, which configures the checkpoint beside it, is not usable: "
            f"{first_line(error)}; take it away, or say what the model predicts with "
            "IMG2IMG_PREDICTION"
        ) from error
    return None if said is None else (_PREDICTIONS[said], path.name)


def _said(path: Path) -> str | None:
    """Raises OSError, ValueError, RecursionError and YAMLError."""
    with path.open("rb") as file:
        content = file.read(_MOST_BYTES + 1)
    if len(content) > _MOST_BYTES:
        raise ValueError(f"it is larger than {_MOST_BYTES // 2**10} KiB")
    node = yaml.compose(content, Loader=yaml.SafeLoader)
    for key in _WHERE:
        if not isinstance(node, yaml.MappingNode):
            return None
        node = {k.value: v for k, v in node.value if isinstance(k, yaml.ScalarNode)}.get(key)
    if node is None or node.tag == _NULL:
        return None
    return str(node.value)
