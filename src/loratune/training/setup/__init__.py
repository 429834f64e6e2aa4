"""Set up a training run: from a configuration to a plan, a model and data, before the first step."""

from dataclasses import dataclass

from loratune.config.train import TrainConfig
from loratune.data.example import Example
from loratune.data.sample import draw_stratified_sample
from loratune.models.load import PRECISIONS, set_precision
from loratune.models.lora import add_lora
from loratune.system.cache import get_cache_folder
from loratune.training.autotune import measure_all_layers, measure_memory_besides_weights
from loratune.training.plan import TrainPlan
from loratune.training.run_estimate import RunEstimate, estimate_run
from loratune.training.setup.defaults import choose_step_size, resolve_defaults
from loratune.training.setup.inputs import TrainInputs, load_inputs
from loratune.training.setup.plan import build_step_settings, make_plan


@dataclass(frozen=True)
class Setup:
    """A training run that is ready for its first step."""

    config: TrainConfig  # as it is recorded with the run: nothing is left to the machine or the moment
    plan: TrainPlan
    inputs: TrainInputs  # the model has its new adapter, its precision and its device
    adapted_layers: list[str]
    val_examples: list[Example]  # the sample that is validated on
    estimate: RunEstimate | None  # none on a GPU and for a resumed run


def set_up(config: TrainConfig) -> Setup:
    """Load the inputs, resolve the defaults, build the model and make the plan.

    Raises:
        UserError: the configuration, the data, the model or the machine rules the run out.
    """
    inputs = load_inputs(config)
    besides_weights = measure_memory_besides_weights(inputs.model.decoder)
    config, measurement = resolve_defaults(config, inputs)
    layers = build_model(config, inputs)
    if measurement:
        step = build_step_settings(config)
        cache, decoder = get_cache_folder(), inputs.model.decoder
        measurement = measure_all_layers(decoder, inputs.examples, step, measurement=measurement, cache=cache)
    config = choose_step_size(config, measurement, inputs)
    # Runs with other seeds are compared on the same rows.
    val_examples = draw_stratified_sample(inputs.val_examples, config.val_rows, seed=0)
    plan = make_plan(config, inputs)
    estimate = None
    if measurement:
        estimate = estimate_run(
            measurement, besides_weights, plan, examples=inputs.examples, val_examples=val_examples
        )
    return Setup(config, plan, inputs, layers, val_examples, estimate)


def build_model(config: TrainConfig, inputs: TrainInputs) -> list[str]:
    """Give the base model its precision, its device and a new adapter; return the adapted layers' names."""
    decoder = inputs.model.decoder
    set_precision(decoder, PRECISIONS[config.precision]).to(inputs.device)
    decoder.gradient_checkpointing = config.low_memory
    return add_lora(
        decoder, config.rank, config.alpha, dropout=config.dropout, targets=config.targets, seed=config.seed
    )
