"""What FORMAT.md explains byte by byte and EXACT.md symbol by symbol are vectors; the numbers are theirs."""

from __future__ import annotations

import hashlib
import re
import struct
import zlib

import numpy as np
from generate.texts import streams

from support.specification import SPEC, VECTORS, ref

FORMS = {"u8": "B", "u16": "H", "u32": "I", "u64": "Q", "i64": "q", "f32": "f", "f64": "d"}


def appendix() -> str:
    return (SPEC / "FORMAT.md").read_text(encoding="utf-8").split("## Appendix: a file byte by byte", 1)[1]


def test_the_table_of_the_appendix_is_the_file() -> None:
    """Every byte of the smallest vector is in the table, at its offset, with its value, under the CRC that is named."""
    data = (VECTORS / "valid" / "minimal.relex").read_bytes()
    at = 0
    rows = re.findall(r"^\| (\d+)(?: - (\d+))? \| `([^`]+)` \| (.*?) \| (.+) \|$", appendix(), re.MULTILINE)
    for first, last, content, value, meaning in rows:
        end = int(last or first) + 1
        assert int(first) == at, f"the row at {first} does not follow {at}"
        expected = bytes.fromhex(content) if re.fullmatch("[0-9A-F]{2}( [0-9A-F]{2})*", content) else content.encode()
        assert data[at:end] == expected, f"bytes {first} to {end - 1}"
        if value:
            kind, text = value.split(" ")
            number = struct.unpack_from("<" + FORMS[kind], data, at)[0]
            assert number == (float(text) if kind[0] == "f" else int(text, 0)) or (text == "NaN" and number != number)
        if crc := re.search(r"CRC of .*?bytes (\d+) (?:to|and) (\d+)", meaning):
            assert number == zlib.crc32(data[int(crc[1]) : int(crc[2]) + 1])
        if digest := re.search(r"SHA-256 of `(.*?)`", meaning):
            assert expected == hashlib.sha256(bytes.fromhex(digest[1])).digest()[:16]
        at = end
    assert at == len(data) < 2048 and f"has {at} bytes" in appendix()


def test_the_arithmetic_of_the_appendix() -> None:
    data = (VECTORS / "valid" / "minimal.relex").read_bytes()
    assert re.findall(r"Byte \d is (0x..) = (\d+) = ([^:,]+?)[:,]", appendix().replace("\n", " ")) == [
        (f"0x{byte:02X}", str(byte), text)
        for byte, text in zip(
            data[-2:],
            ("2 + 3 * 0 + 9 * 2 + 27 * 1 + 81 * 1", "1 + 3 * 2 + 9 * 0 + 27 * 1 + 81 * 1"),
            strict=True,
        )
    ]
    assert data[-2] == 2 + 3 * 0 + 9 * 2 + 27 * 1 + 81 * 1 and data[-1] == 1 + 3 * 2 + 9 * 0 + 27 * 1 + 81 * 1
    assert ref.unpack_codes(data[-2:], 2, 6).tolist() == [1, 0, -1, 1, 1, -1] and data[-1] // 3 % 3 == 2
    place = ref.RelexFile(data).entries["relex.coefficients"].start
    one, w0, g = np.float32(1), np.float32(3), np.float32(struct.unpack_from("<d", data, place)[0])
    scaled, offset = one * np.float32(0.25), one * np.float32(0.0625)
    p = np.float32(0) + (scaled - offset)
    values = {
        "origin": w0,
        "g": g,
        "q * scale": scaled,
        "sign(q) * shift": offset,
        "p": p,
        "p * g": p * g,
        "x": w0 + p * g,
    }
    table = re.findall(r"^\| (.+?) \| `0x([0-9A-F]{8})` \| (.+?) \|$", appendix(), re.MULTILINE)
    assert [row[0] for row in table] == list(values)
    for name, bits, meaning in table:
        assert f"{int(values[name].view(np.uint32)):08X}" == bits
        decimal = re.search(r"(?:= )?([0-9.]+)(?:, rounded|, in the base.*)?$", meaning)
        assert decimal and (float(decimal[1]) == float(values[name]) or name == "g")
    for bits, decimal in re.findall(r"(0x404[34]) = ([0-9.]*[0-9])", appendix()):
        assert float(ref.widen(struct.pack("<H", int(bits, 16)), "BF16")[0]) == float(decimal)
    file, base = ref.RelexFile(data), ref.read_safetensors(VECTORS / "valid" / "minimal.safetensors")
    decoded = file.tensor("w", 4, "auto", base)
    whole, element = decoded.hex(" ").upper(), decoded[6:8].hex(" ").upper()
    assert f"is `{whole}`" in appendix() and f"is 0x4044, bytes `{element}`" in appendix()
    assert (
        ref.widen(base("w")[2], "BF16").tolist() == [1, -2, 0.5, 3, 0, -1]
        and "holds 1, -2, 0.5, 3, 0, -1" in appendix()
    )


def worked() -> str:
    return (SPEC / "EXACT.md").read_text(encoding="utf-8").split("## 15. Three streams, symbol by symbol", 1)[1]


def test_the_streams_of_the_worked_example() -> None:
    """Bytes, lanes, contexts, slots, symbols and raw bits of the text are what the reference decoder takes."""
    row = re.compile(r"^(\| \d+ \| (?:context|\d+ raw bit).*? \| \d+ \|) .+ \|$", re.MULTILINE)
    sections = re.split(r"\n\*\*(?=The first frame|Step \d)", worked())[1:]
    told = [(re.findall(r"`((?:[0-9A-F]{2} )+[0-9A-F]{2})`", section)[0], row.findall(section)) for section in sections]
    assert told == [(raw, rows) for _, raw, rows in streams()]
    assert [step for step, _, _ in streams()] == [3, 1, 2]


def test_the_words_and_bits_of_the_worked_example() -> None:
    text, path = worked(), VECTORS / "valid" / "exact-worked.relex"
    file, base = ref.RelexFile(path.read_bytes()), ref.read_safetensors(path.with_suffix(".safetensors"))
    low, (tables,) = ref.read_tables(file, 0, 0)
    bits = [base("w")[2], *(file.tensor("w", step, "exact", base) for step in file.steps)]
    part = ref.Segmented(bits[0], "BF16", low)
    assert ref.widen(bits[0], "BF16").tolist() == [1, 2, -0.5, 0.25, 3] and "1, 2, -0.5, 0.25, 3" in text
    assert f"`half` is {ref.half_of('BF16')} and `low` is {low}." in text and len(file.groups) == 1
    table = [list(map(int, row)) for row in re.findall(r"^" + r"\| (\d+) " * 7 + r"\|$", text, re.MULTILINE)]
    steps = [part.words(raw) for raw in bits]
    assert table == [[i, part.places[i], part.classes[i], *(words[i] for words in steps)] for i in range(5)]
    assert tables.dense == 0 and tables.tables == [[2048, 1024, 512, 512], [64] * 64]
    by_table = [{c for c, number in enumerate(tables.contexts) if number == i} for i in (0, 1)]
    assert by_table == [set(range(880)), set(range(880, 1056)) | {1072}]
    restored = re.search(r"step 2 is `(.*?)`.*`(.*?)`", text, re.DOTALL)
    assert restored and bytes.fromhex(restored[1]) == bits[2]
    assert bytes.fromhex(restored[2]) == hashlib.sha256(bits[2]).digest()[:8] == ref.read_frame(file, 0, 0, 2)[0].digest


def test_the_sums_of_the_worked_example() -> None:
    text = worked().replace("\n", " ").replace("mod", "%")
    sums = re.findall(r"(?<![0-9x] )(?<![\w.])([0-9(][0-9 +*/%()-]* [0-9()+*/% -]*[0-9)]) = (-?[0-9]+)", text)
    assert len(sums) >= 18
    for expression, result in sums:
        assert eval(expression) == int(result), expression
    for number, value in re.findall(r"zigzag of (\d+) is (-?\d+)", text):
        assert ref.zigzag(int(number)) == int(value)
    assert int("0x0B8D00700128", 16) == 12700225634600 and int("0x800400D7", 16) == 2147746007
    assert "0x0B8D00700128 = 12700225634600" in text and "0x800400D7 = 2147746007" in text
    assert 64 * (99220512788 // 4096) + 20 == 1550320532
