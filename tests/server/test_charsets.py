from __future__ import annotations

import encodings
from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from server.http.charsets import UndecodableText, decode_text


@pytest.mark.parametrize(
    ("label", "codec", "text"),
    [
        ("", "utf-8", "chat à l’huile 🐈"),
        ("UTF8", "utf-8", "猫"),
        ('"utf-8"', "utf-8", "猫"),
        ("us-ascii", "ascii", "a cat"),
        ("ISO-8859-1", "latin-1", "café"),
        ("iso-8859-1", "cp1252", "“café”"),
        ("ISO8859-15", "iso8859-15", "5 €"),
        ("windows-1251", "cp1251", "синий круг"),
        ("x-cp1251", "cp1251", "синий круг"),
        ("KOI8-R", "koi8-r", "синий круг"),
        ("ibm866", "cp866", "синий круг"),
        ("x-mac-cyrillic", "mac-cyrillic", "синий круг"),
        ("windows-1255", "cp1255", "חתול"),
        ("GBK", "gbk", "蓝色圆"),
        ("gb2312", "gbk", "繁體"),
        ("gb18030", "gb18030", "🐈"),
        ("Big5", "big5", "藍色"),
        ("Shift_JIS", "cp932", "猫①"),
        ("x-sjis", "cp932", "猫"),
        ("euc-jp", "euc-jp", "猫"),
        ("ISO-2022-JP", "iso2022-jp", "猫"),
        ("euc-kr", "cp949", "고양이 똠"),
        ("ks_c_5601-1987", "cp949", "고양이"),
        ("UTF-16", "utf-16", "猫"),
        ("utf-16le", "utf-16-le", "猫"),
        ("utf-16be", "utf-16-be", "\ufeff猫"),
        ("utf-32", "utf-32", "🐈"),
        ("", "utf-8-sig", "a cat"),
    ],
)
def test_labels_that_senders_write(label: str, codec: str, text: str) -> None:
    assert decode_text(text.encode(codec), label) == text.removeprefix("\ufeff")


@pytest.mark.parametrize(
    ("data", "label", "problem"),
    [
        (b"caf\xe9", "", "is not valid UTF-8; send it as UTF-8 or declare its charset"),
        (b"caf\xe9", "utf-8", "is not valid utf-8, its declared charset"),
        ("é".encode(), "us-ascii", "is not valid us-ascii"),
        (b"\xff", "gbk", "is not valid gbk"),
        (b"\x00\xd8", "utf-16le", "is not valid utf-16le"),
        (b"\xed\xa0\x80", "", "is not valid UTF-8"),
        (b"a", "klingon", "the charset klingon is not known; send it as UTF-8"),
        (b"a", "caf\xe9", r"the charset caf\xe9 is not known"),
        (b"a", "x" * 500, f"the charset {'x' * 40}... is not known"),
    ],
)
def test_what_cannot_be_decoded(data: bytes, label: str, problem: str) -> None:
    with pytest.raises(UndecodableText) as caught:
        decode_text(data, label)
    assert str(caught.value).startswith(problem)


NO_CHARSETS = """
    hex base64 bz2 zip rot13 quopri uu utf-7 utf7 u7 idna punycode unicode_escape
    raw_unicode_escape undefined mbcs charmap utf_8_sig aliases hz iso-2022-kr ..os
"""


@pytest.mark.parametrize("label", NO_CHARSETS.split())
def test_codecs_that_are_no_charsets_of_documents(label: str) -> None:
    with pytest.raises(UndecodableText, match="is not known"):
        decode_text(b"+AGEAYg-", label)


def test_unknown_labels_leave_nothing_behind() -> None:
    known: dict[str, object] = vars(encodings)["_cache"]
    before = len(known)
    for number in range(50):
        with pytest.raises(UndecodableText):
            decode_text(b"a", f"made-up-{number}")
    assert len(known) == before


@given(st.binary(max_size=40), st.sampled_from(["", "gbk", "utf-16", "iso-2022-jp", "euc-kr"]))
def test_any_bytes_give_text_that_is_utf8_or_a_problem(data: bytes, label: str) -> None:
    with suppress(UndecodableText):
        text = decode_text(data, label)
        assert text.encode().decode() == text
