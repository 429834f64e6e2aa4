"""Render the picture of `loratune preview` in the docs: `python -m tools.preview --data data/train.jsonl`.

`loratune prepare --source snapshot --model smollm2-135m` writes that file. Three short rows of it are shown,
with a small token limit, so that one is truncated.
"""

import argparse
import re
import tempfile
from pathlib import Path

from rich._export_format import CONSOLE_SVG_FORMAT
from rich.console import Console

from loratune.commands import preview
from loratune.config.preview import PreviewConfig
from loratune.data.jsonl import read_records, write_records
from loratune.report.terminal import rows

IDS = ("dolly-cb9e1726c368a829", "PNC/2008/page_32.pdf-1", "dolly-389be41bb90cfdec")
MAX_TOKENS = 176
WIDTH = 96


def main(data: Path, out: Path) -> None:
    chosen = [record for record in read_records(data) if record.id in IDS]
    rows.console = Console(
        record=True, force_terminal=True, color_system="truecolor", no_color=False, width=WIDTH
    )
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "train.jsonl"
        write_records(file, chosen)
        preview.run(PreviewConfig(model="smollm2-135m", data=file, rows=len(chosen), max_tokens=MAX_TOKENS))
    # Rich's own template loads fonts from the network.
    code_format = re.sub(r"@font-face \{\{.*?\}\}\s*", "", CONSOLE_SVG_FORMAT, flags=re.DOTALL)
    rows.console.save_svg(
        str(out), title=f"loratune preview --max-tokens {MAX_TOKENS}", code_format=code_format
    )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--out", type=Path, default=Path("docs/preview.svg"))
    options = parser.parse_args()
    main(options.data, options.out)
