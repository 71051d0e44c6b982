"""A1111's prompt syntax that this server does not have: recognised, so that it can be named."""

from __future__ import annotations

import re

from server.api.a1111_form import A1111Form

_NETWORK = re.compile(r"<(\w+):[^>]+>")
"""``<lora:name:0.8>`` and its kind, which A1111 cuts out before it reads the prompt."""
_AND = re.compile(r"\bAND\b")
_MARK = re.compile(
    r"""
    \\.
    | (?P<open>[(\[])
    | (?P<close>[)\]])
    | (?P<alternation>\|)
    | (?P<editing>:\s*+[+-]?(?:\d++\.?\d*+|\.\d++)\s*+(?=\]))
    """,
    re.VERBOSE | re.DOTALL,
)


def without_unsupported(asked: A1111Form) -> tuple[A1111Form, list[str]]:
    """Return the form without networks in its prompts, and names of all that has no effect.

    The words of what remains are read as words.
    """
    ignored: list[str] = []
    cut: dict[str, str] = {}
    for name in ("prompt", "negative_prompt"):
        text: str = getattr(asked, name)
        found = [kind.lower() for kind in _NETWORK.findall(text)]
        text = cut[name] = _NETWORK.sub("", text).strip()
        found += _in_brackets(text)
        if name == "prompt" and _AND.search(text):  # A negative prompt is one there too.
            found.append("AND")
        ignored += dict.fromkeys(f"{name}.{what}" for what in found)
    return asked.model_copy(update=cut), ignored


def _in_brackets(prompt: str) -> list[str]:
    """Return ``editing`` for ``[a:b:0.5]``, ``alternation`` for ``[a|b]``, as they are closed."""
    found: list[str] = []
    opened: list[tuple[str, list[str]]] = []
    for mark in _MARK.finditer(prompt):
        kind = mark.lastgroup
        if kind == "open":
            opened.append((mark.group(), []))
        elif kind == "close" and opened:
            bracket, inside = opened.pop()
            found += inside if (bracket, mark.group()) == ("[", "]") else []
        elif kind in ("alternation", "editing") and opened:
            opened[-1][1].append(kind)
    return found
