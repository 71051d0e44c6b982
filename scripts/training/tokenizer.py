"""The embedded model's own small vocabulary, in the file format of CLIP's tokenizer.

Byte-level byte-pair encoding, lower-cased, with `</w>` at a word's end, as CLIP's: every byte is a
token of its own, so any prompt encodes. Merges are learnt from the words that captions, style
templates and everyday prompts use, until each such word is one token.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterable
from itertools import pairwise
from pathlib import Path

from transformers import CLIPTokenizer

START, END = "<|startoftext|>", "<|endoftext|>"
MAX_LENGTH = 77
# CLIP's own split, without its contractions: words, single digits, runs of anything else.
_PIECES = re.compile(r"[^\W\d_]+|\d|[^\s\w]+|_+")

# Words people put into prompts that no caption has: tokens, though nothing is drawn for them.
EVERYDAY = """
the of and with in on at by to for from an is it no not as or into over under near behind
front photo photograph portrait picture image drawing painting sketch illustration art artwork
render man woman girl boy person people child dog bird horse animal face eyes hair hand city
street road river lake forest field hill beach sea sand rain cloud clouds sun sunny day
morning evening light dark bright colorful colourful beautiful detailed realistic highly high
quality best masterpiece ultra old new young large big small tiny huge little long short tall
wide round flat two three one many some single left right above below beside next between
against background foreground center centre style simple empty plain clear blurry low worst
bad ugly text watermark signature grey gray gold silver cyan teal beige cream turquoise violet
magenta lavender maroon navy pale wooden stone metal glass paper water fire ice snowy sandy
starry grassy
""".split()  # noqa: SIM905


def _byte_letters() -> list[str]:
    """The printable letter that stands for each byte, as GPT-2's and CLIP's byte-level encoding
    assigns them: printable bytes stand for themselves, the rest take letters from 256 on."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    letters = {byte: chr(byte) for byte in printable}
    for byte in range(256):
        letters.setdefault(byte, chr(256 + len(letters) - len(printable)))
    return [letters[byte] for byte in range(256)]


def learn_merges(words: Counter[str]) -> list[tuple[str, str]]:
    """Merge the commonest pair of neighbours until every word of `words` is one token. Ties go to
    the pair that sorts first, so the same words give the same merges."""
    letters = _byte_letters()
    split: dict[str, tuple[str, ...]] = {}
    for word in words:
        encoded = [letters[byte] for byte in word.encode()]
        split[word] = (*encoded[:-1], encoded[-1] + "</w>")
    merges: list[tuple[str, str]] = []
    while True:
        pairs: Counter[tuple[str, str]] = Counter()
        for word, pieces in split.items():
            for pair in pairwise(pieces):
                pairs[pair] += words[word]
        if not pairs:
            return merges
        best = min(pairs, key=lambda pair: (-pairs[pair], pair))
        merges.append(best)
        split = {word: _merged(pieces, best) for word, pieces in split.items()}


def _merged(pieces: tuple[str, ...], pair: tuple[str, str]) -> tuple[str, ...]:
    merged: list[str] = []
    for piece in pieces:
        if merged and (merged[-1], piece) == pair:
            merged[-1] += piece
        else:
            merged.append(piece)
    return tuple(merged)


def write_tokenizer(folder: Path, texts: Iterable[str]) -> CLIPTokenizer:
    """Learn a vocabulary from `texts` and the everyday words, and save it to `folder` as diffusers
    and transformers read it. Returns the tokenizer."""
    words: Counter[str] = Counter(EVERYDAY)
    for text in texts:
        words.update(_PIECES.findall(text.lower()))
    merges = learn_merges(words)
    letters = _byte_letters()
    tokens = [*letters, *(letter + "</w>" for letter in letters)]
    known = set(tokens)
    for first, second in merges:
        if first + second not in known:
            known.add(first + second)
            tokens.append(first + second)
    tokens += [START, END]
    folder.mkdir(parents=True, exist_ok=True)
    vocabulary = {token: index for index, token in enumerate(tokens)}
    (folder / "vocab.json").write_text(json.dumps(vocabulary, ensure_ascii=False), "utf-8")
    lines = ["#version: 0.2", *(f"{first} {second}" for first, second in merges)]
    (folder / "merges.txt").write_text("\n".join(lines) + "\n", "utf-8")
    settings = {
        "tokenizer_class": "CLIPTokenizer",
        "model_max_length": MAX_LENGTH,
        "bos_token": START,
        "eos_token": END,
        "unk_token": END,
        "pad_token": END,
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(settings, indent=2) + "\n", "utf-8")
    return CLIPTokenizer.from_pretrained(folder)


def encode(tokenizer: CLIPTokenizer, texts: list[str]) -> list[list[int]]:
    """Token ids, every text padded or cut to 77 as Stable Diffusion does."""
    ids = tokenizer(texts, padding="max_length", max_length=MAX_LENGTH, truncation=True)[
        "input_ids"
    ]
    return [list(row) for row in ids]
