"""The model card is Markdown with a head in YAML: no name gets out of its place in either."""

import ast
import re
from types import SimpleNamespace

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from loratune.data.example import Record
from loratune.data.template import Template
from loratune.report.model_card import render_model_card
from loratune.training.checkpoint import TrainingState
from support.plans import ADAPTER
from support.small_models import LLAMA_SHAPES, build_reference, convert_to_decoder

HOSTILE = [
    "owner/name\nlicense: mit\n---\n# Buy this",
    'owner/"name"',
    "owner/name: {a: [b]} # c",
    "---",
    "`code` [link](https://x) ![image](https://x/y.png) <script>alert(1)</script> | cell |",
    '"); import os; os.system("x") #',
    "\u2028\u2029\x85\x0b",
    "```\n# out of the fence\n```",
    "@somebody #1",
    "\x00",
]


@pytest.fixture(scope="module")
def decoder():
    return convert_to_decoder(build_reference(LLAMA_SHAPES["smollm2"]))


def card_of(decoder, text: str) -> str:
    tokenizer = SimpleNamespace(bos=[1], bos_text=text)
    base = SimpleNamespace(resolved=SimpleNamespace(hub_name=text), decoder=decoder, tokenizer=tokenizer)
    template = Template("mine", f"{text}{{instruction}}{{input}}{text}", "{instruction}")
    state = TrainingState(
        step=3,
        elapsed=60.0,
        stepping=50.0,
        tokens=900,
        validations=2,
        base_nll=2.5,
        best_nll=2.0,
        best_step=2,
    )
    records = [Record("a", "", "b", id="1", source=text), Record("a", "", "b", id="2", source="dolly")]
    form = {"state": state, "records": records, "val_rows": 5, "adapted_layers": 1}
    return render_model_card(ADAPTER, base, template, **form)


def outside_fences(markdown: str) -> str:
    return re.sub(r"(?ms)^(`{3,})\w*\n.*?^\1$", "", markdown)


@settings(max_examples=40, deadline=None)
@given(
    text=st.sampled_from(HOSTILE)
    | st.text(st.sampled_from("-:#`\n\"'[]{}<>|!&*@ a") | st.characters(exclude_categories=["Cs"]))
)
def test_names_stay_in_their_places(decoder, text):
    card = card_of(decoder, text)
    head, body = card.removeprefix("---\n").split("\n---\n", 1)
    assert yaml.safe_load(head) == {
        "base_model": text,
        "library_name": "peft",
        "pipeline_tag": "text-generation",
        "license": "cc-by-sa-3.0",
        "tags": ["lora", "loratune"],
    }
    # The program in it names the base as it is, and does nothing else.
    (program,) = re.findall(r"(?ms)^```python\n(.*?)^```$", body[body.index("\n## Use\n") :])
    strings = [node.value for node in ast.walk(ast.parse(program)) if isinstance(node, ast.Constant)]
    assert strings == [text, "FOLDER", "FOLDER"]
    # Outside of fences there is the same markup as ever.
    plain, ours = (outside_fences(one.partition("\n---\n")[2]) for one in (card, card_of(decoder, "word")))
    for markup in (
        r"(?m)^#+ ",
        r"(?<!\\)`",
        r"(?<!\\)\[",
        r"(?<!\\)<",
        r"(?<!\\)\|",
        r"(?m)^\* ",
        r"(?m)^---",
        r"\n",
    ):
        assert len(re.findall(markup, plain)) == len(re.findall(markup, ours)), markup
    assert f"{text}{{instruction}}{{input}}{text}" in body
