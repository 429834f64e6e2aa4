"""Unsupported file types, such as spreadsheets, and how to convert them."""

import shlex
from pathlib import Path

EXAMPLE_ROW = '{"instruction": "...", "output": "..."}'
SPREADSHEETS = (".xlsx", ".xls", ".xlsm", ".ods", ".numbers")
CSV_REMEDY = "save it as CSV (UTF-8) in the program that made it, and name that file"
PROSE_REMEDY = (
    "a text does not say what is asked and what is to be answered; write one JSON object a line, "
    f"{EXAMPLE_ROW}, into a .jsonl file"
)
DECOMPRESS_COMMANDS = {
    ".gz": "gunzip --keep",
    ".xz": "xz --decompress --keep",
    ".bz2": "bunzip2 --keep",
    ".zst": "zstd --decompress",
    ".zip": "unzip",
    ".tar": "tar --extract --file",
    ".tgz": "tar --extract --gzip --file",
    ".7z": "7z x",
}
# The library `datasets` writes Arrow streams and other programs write Arrow files, so both are tried. pyarrow
# is installed with loratune.
ARROW_CODE = """\
import pyarrow.ipc as a, pyarrow.parquet as p; f = open({path!r}, 'rb'); \
t = a.open_file(f) if f.read(6) == b'ARROW1' and not f.seek(0) else a.open_stream(f.seek(0) or f); \
p.write_table(t.read_all(), {out!r})"""
REMEDIES = {
    **dict.fromkeys(SPREADSHEETS, CSV_REMEDY),
    **dict.fromkeys((".md", ".doc", ".docx", ".odt", ".rtf", ".pdf", ".html", ".htm"), PROSE_REMEDY),
    ".txt": f"if tabs or commas separate its columns, rename it to .tsv; if not: {PROSE_REMEDY}",
    **dict.fromkeys((".ndjson", ".jsonlines", ".jl"), "rename it to .jsonl"),
    **dict.fromkeys((".tab", ".psv"), "rename it to .tsv"),
}


def suggest_conversion(path: Path) -> list[str]:
    """Return a sentence that says how to convert a file; none if its type is unknown."""
    kind = path.suffix.lower()
    if kind in DECOMPRESS_COMMANDS:
        return [f"unpack it and name what was in it: {DECOMPRESS_COMMANDS[kind]} {shlex.quote(str(path))}"]
    if kind in (".arrow", ".feather"):
        code = ARROW_CODE.format(path=str(path), out=str(path.with_suffix(".parquet")))
        return [f"make a .parquet file of it: {shlex.join(['python', '-c', code])}"]
    return [REMEDIES[kind]] if kind in REMEDIES else []
