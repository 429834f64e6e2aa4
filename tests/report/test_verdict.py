"""The verdict: what is better and what is not, against the strongest base; a gain that is only stopping."""

from loratune.evaluation.result import EvaluationPart, ScoreChange
from loratune.report.verdict import describe_verdict


def build_part(changes: dict[str, float], base: dict[str, float], **other_bases) -> EvaluationPart:
    """Scores of 40 rows; every change is clear unless it is 0."""

    def differ(reference: dict[str, float]) -> dict[str, ScoreChange]:
        return {
            name: ScoreChange(mean=mean, interval=(mean - 0.001, mean + 0.001))
            for name, value in reference.items()
            for mean in [base[name] + changes[name] - value]
        }

    fields = {name: measures for name, measures in other_bases.items()}
    fields |= {name.replace("base", "difference"): differ(measures) for name, measures in other_bases.items()}
    tuned = {name: value + changes[name] for name, value in base.items()}
    return EvaluationPart(
        rows=40, improved=20, tied=0, regressed=20, base=base, tuned=tuned, difference=differ(base), **fields
    )


BASE = {"nll": 3.0, "rouge_l": 0.2, "eos_rate": 0.5, "rep_4": 0.3}


def test_it_says_what_is_better_and_what_is_not():
    part = build_part({"nll": -0.2, "rouge_l": -0.05, "eos_rate": 0.1, "rep_4": 0.0}, BASE)
    assert describe_verdict(part) == (
        "Against the strongest way to ask the base: better in the loss (3.000 to 2.800); worse in ROUGE-L "
        "(20.0 to 15.0 %); no clear change in repetition."
    )


def test_each_metric_is_judged_against_the_base_that_is_strongest_in_it():
    chat = {"nll": 3.1, "rouge_l": 0.3, "eos_rate": 0.5, "rep_4": 0.3}
    part = build_part({"nll": -0.2, "rouge_l": 0.05, "eos_rate": 0.0, "rep_4": 0.0}, BASE, base_chat=chat)
    assert describe_verdict(part).startswith(
        "Against the strongest way to ask the base: better in the loss (3.000 to 2.800); worse in ROUGE-L "
        "(30.0 to 25.0 %)"
    )


def test_a_gain_that_is_only_stopping_is_called_that():
    part = build_part({"nll": 0.0, "rouge_l": -0.05, "eos_rate": 0.4, "rep_4": -0.2}, BASE)
    assert describe_verdict(part) == (
        "All that is better than the strongest way to ask the base is that it stops: 90.0 % of the answers "
        "end before the limit (50.0 % of the base's); worse in ROUGE-L (20.0 to 15.0 %); no clear change in "
        "the loss."
    )


def test_it_says_where_nothing_is_better():
    part = build_part({"nll": 0.1, "rouge_l": 0.0, "eos_rate": 0.0, "rep_4": 0.0}, BASE)
    assert describe_verdict(part) == (
        "Nothing is clearly better than the strongest way to ask the base: worse in the loss (3.000 to "
        "3.100); no clear change in ROUGE-L and repetition."
    )


def test_a_loss_that_falls_only_at_the_end_of_an_answer_is_called_that():
    base = {"nll": 3.0, "content_nll": 2.9, "rouge_l": 0.2, "eos_rate": 0.5, "rep_4": 0.3}
    changes = {"nll": -0.1, "content_nll": 0.0, "rouge_l": 0.0, "eos_rate": 0.4, "rep_4": -0.1}
    assert describe_verdict(build_part(changes, base)).startswith(
        "All that is better than the strongest way to ask the base is that it stops: 90.0 %"
    )
    changes |= {"rouge_l": 0.1}
    assert describe_verdict(build_part(changes, base)) == (
        "Against the strongest way to ask the base: better in the loss (3.000 to 2.900) (only in the token "
        "that ends an answer), ROUGE-L (20.0 to 30.0 %) and repetition (30.0 to 20.0 %)."
    )
