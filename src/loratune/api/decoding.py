"""Turn the options of answers into the settings of the library."""

from dataclasses import fields

from loratune.config.evaluate import EvaluateConfig
from loratune.config.shared import DecodingConfig, SamplingConfig
from loratune.evaluation.runner import AnswerSettings
from loratune.generation.decoding import Decoding


def build_decoding(config: SamplingConfig) -> Decoding:
    """Build the decoding settings from the fields of the same names; others keep their defaults."""
    return Decoding(**config.model_dump(include={field.name for field in fields(Decoding)}))


def build_answer_settings(config: DecodingConfig) -> AnswerSettings:
    """Build the settings with which `compare` and `evaluate` let models answer."""
    samples = config.samples if isinstance(config, EvaluateConfig) else 1
    return AnswerSettings(build_decoding(config), samples, config.batch_size)
