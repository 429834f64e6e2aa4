"""Load adapters with their base model."""

from pathlib import Path

from loratune.config.shared import AdapterConfig, BaseOverrideConfig
from loratune.model import TunedModel, load_tuned_model


def load_for(config: AdapterConfig) -> TunedModel:
    """Load the adapter that a configuration names."""
    return load_adapters_for(config, [config.adapter])


def load_adapters_for(config: BaseOverrideConfig, adapters: list[Path]) -> TunedModel:
    """Load several adapters of one base, with the machine and the overrides that a configuration names."""
    return load_tuned_model(
        adapters,
        model=config.model,
        template=config.template,
        threads=config.threads,
        device=config.device,
    )
