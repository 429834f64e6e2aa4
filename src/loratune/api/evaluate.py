"""Evaluate adapters and their base on held-out rows."""

from loratune.api.decoding import build_answer_settings
from loratune.api.load import load_adapters_for
from loratune.config.evaluate import EvaluateConfig
from loratune.evaluation.evaluate import EvaluationInputs
from loratune.evaluation.forgetting import load_prose
from loratune.evaluation.held_out import EvaluationSettings, select_rows, tokenize_held_out
from loratune.model import TunedModel
from loratune.system.atomic import refuse_unwritable


def build_evaluation_settings(config: EvaluateConfig) -> EvaluationSettings:
    """Return what the configuration says of the rows and the measures."""
    return EvaluationSettings(
        answers=build_answer_settings(config),
        facts=config.facts,
        rows=config.rows,
        generate=config.generate,
        bare=config.bare,
        own_template=config.own_template,
        constrain=config.constrain,
        max_tokens=config.max_tokens,
        seed=config.seed,
    )


def load_inputs(config: EvaluateConfig, model: TunedModel | None = None) -> EvaluationInputs:
    """Read the rows, and load the adapters unless they are given.

    Raises:
        UserError: for everything that can be found wrong before the work begins.
    """
    settings = build_evaluation_settings(config)
    refuse_unwritable(config.out)
    prose = load_prose(config.forgetting)
    selection = select_rows(config.data, settings)
    if model is None:
        model = load_adapters_for(config, config.adapter)
    held_out = tokenize_held_out(selection.records, model, settings)
    return EvaluationInputs(model, settings, selection=selection, held_out=held_out, prose=prose)
