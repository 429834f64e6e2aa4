import json

import pytest

from loratune.errors import UserError
from loratune.report.schema import read_evaluation
from support.evaluations import evaluation


def test_what_evaluate_writes_is_read_and_new_names_are_ignored(tmp_path):
    path = tmp_path / "evaluation.json"
    path.write_text(json.dumps(evaluation() | {"spread": {"new": [1]}, "forgetting": None}))
    read = read_evaluation(path)
    assert read.base == {"nll": 2.7, "perplexity": 14.9, "rouge_l": 0.1, "eos_rate": 0.25}
    assert [example.change for example in read.examples] == [-0.5, 0.0, 0.5]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"base": 5}, "base: input should be a valid dictionary"),
        ({"difference": {"nll": {"mean": "much", "interval": [0, 1]}}}, "difference.nll.mean: "),
        ({"difference": {"nll": {"mean": 0, "interval": [0]}}}, "difference.nll.interval"),
        (
            {"difference": {"nll": {"mean": float("nan"), "interval": [0, 1]}}},
            "difference.nll.mean: input should be a finite number",
        ),
        (
            {"difference": {"nll": {"mean": 1e300, "interval": [0, 1]}}},
            "difference.nll.mean: input should be less than or equal to",
        ),
        ({"rows": -1}, "rows: input should be greater than or equal to 0"),
        ({"adapter": None}, "adapter: "),
        ({"examples": {"a": 1}}, "examples: "),
        ({"examples": [{"source": "dolly"}]}, "examples.0.instruction: field required"),
        ({"examples": [{"instruction": "\ud800"}]}, "a broken character"),
        ({"by_source": {"dolly": []}}, "by_source.dolly"),
        ({"by_source": {"\ud800": {}}}, "a broken character"),
    ],
)
def test_odd_shapes_are_refused_by_name(tmp_path, change, message):
    path = tmp_path / "evaluation.json"
    path.write_text(json.dumps(evaluation() | change))
    with pytest.raises(UserError) as refused:
        read_evaluation(path)
    assert str(path) in str(refused.value) and message in str(refused.value)


@pytest.mark.parametrize("content", ["[]", "5", "null", "{}", "{", "[" * 100_000])
def test_other_files_are_refused(tmp_path, content):
    path = tmp_path / "evaluation.json"
    path.write_text(content)
    with pytest.raises(UserError, match=r"evaluation\.json"):
        read_evaluation(path)
