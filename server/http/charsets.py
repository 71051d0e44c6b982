"""Text of a form's fields: from bytes in a declared charset, or UTF-8.

Labels come from whoever sends the form, so they are looked up in a fixed table: `codecs.lookup`
imports modules by them and remembers each unknown one for ever, and knows codecs that are no
charsets of documents (UTF-7, unicode_escape, punycode, rot13).
"""

from __future__ import annotations

from encodings.aliases import aliases

_CODECS = """
    utf_8 utf_16 utf_16_le utf_16_be utf_32 utf_32_le utf_32_be ascii latin_1
    iso8859_2 iso8859_3 iso8859_4 iso8859_5 iso8859_6 iso8859_7 iso8859_8 iso8859_9 iso8859_10
    iso8859_11 iso8859_13 iso8859_14 iso8859_15 iso8859_16
    cp1250 cp1251 cp1252 cp1253 cp1254 cp1255 cp1256 cp1257 cp1258
    cp437 cp720 cp737 cp775 cp850 cp852 cp855 cp857 cp858 cp860 cp861 cp862 cp863 cp864 cp865
    cp866 cp869 cp874 cp1125 koi8_r koi8_t koi8_u kz1048 ptcp154 tis_620
    mac_cyrillic mac_greek mac_iceland mac_latin2 mac_roman mac_turkish
    gb2312 gbk gb18030 big5 big5hkscs cp950 euc_kr cp949 johab
    shift_jis shift_jisx0213 shift_jis_2004 cp932 euc_jp euc_jisx0213 euc_jis_2004 iso2022_jp
"""
_SUPERSETS = {
    "gb2312": "gb18030",
    "gbk": "gb18030",
    "euc_kr": "cp949",
    "shift_jis": "cp932",
    "latin_1": "cp1252",
}
"""The charsets that senders mean by some labels, as the WHATWG Encoding Standard reads them too."""

_LABELS = {alias: codec for alias, codec in aliases.items() if codec in _CODECS.split()}
_LABELS |= {codec: codec for codec in _CODECS.split()} | {"iso8859_1": "latin_1"}
_CODEC_OF = {label: _SUPERSETS.get(codec, codec) for label, codec in _LABELS.items()}

_SHOWN = 40
_BYTE_ORDER_MARK = "\ufeff"


class UndecodableText(ValueError):
    """The bytes are not text in the charset; the message says which rule they break."""


def decode_text(data: bytes | bytearray, label: str = "") -> str:
    """Return the text of `data` in the charset called `label`, or in UTF-8 where it is blank.

    A byte order mark at the start is dropped. Raises UndecodableText for a charset that is not
    known and for bytes that are not valid in it.
    """
    label = label.strip(" \t\"'")
    codec = _codec(label) if label else "utf_8"
    shown = _shown(label)
    if codec is None:
        raise UndecodableText(f"the charset {shown} is not known; send it as UTF-8")
    try:
        return data.decode(codec).removeprefix(_BYTE_ORDER_MARK)
    except UnicodeDecodeError:
        pass
    if label:
        raise UndecodableText(f"is not valid {shown}, its declared charset")
    raise UndecodableText("is not valid UTF-8; send it as UTF-8 or declare its charset")


def _codec(label: str) -> str | None:
    name = label.lower().translate(str.maketrans("-. :", "____"))
    return _CODEC_OF.get(name) or _CODEC_OF.get(name.removeprefix("x_"))


def _shown(label: str) -> str:
    text = label.encode("ascii", "backslashreplace").decode()
    return text if len(text) <= _SHOWN else text[:_SHOWN] + "..."
