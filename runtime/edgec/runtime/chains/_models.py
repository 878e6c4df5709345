"""What the stages of a chain that run an artifact do."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from edgec.artifact import Manifest, TensorSpec
from edgec.artifact.steps import Decode, Detection, Step, Threshold, Tokenize, TopK
from edgec.errors import InputError, PipelineError
from edgec.runtime._constants import constant_input
from edgec.runtime.chains._plan import (
    Array,
    Operation,
    Planning,
    State,
    Value,
    Values,
    fitting,
    prediction_of_boxes,
    prediction_of_classes,
    sizes_of,
    store_rows,
    storing,
    tensor,
)
from edgec.runtime.chains._steps import Model, RecurrentState

if TYPE_CHECKING:
    from edgec.runtime._session import Session


def plan_model(name: str, stage: Model, planning: Planning, session: Session) -> tuple[Operation, Value]:
    """Return what runs a model, and what it gives.

    Raises:
        PipelineError: The model does not take what the stage gives it.
    """
    if stage.inputs is not None:
        return _plan_tensors(name, stage, planning, session)
    if stage.each is not None:
        return _plan_each(name, stage.each, stage.batch, planning, session)
    assert stage.input is not None
    source = stage.input
    prepare = _sample_of("input", planning.value(source), session.manifest)
    value = prediction_of(session.manifest)
    store = storing(planning, name, value)
    predict = session.predict

    def run(values: Values, state: State, after: State) -> None:
        store(values, predict(prepare(values[source])))

    return run, value


def _plan_each(
    name: str, source: str, most: int, planning: Planning, session: Session
) -> tuple[Operation, Value]:
    images = planning.expect("each", source, "images")
    prepare = _sample_of("each", Value(kind="image", color=images.color), session.manifest)
    value = Value(kind="predictions", item=prediction_of(session.manifest))
    store = storing(planning, name, value)

    def run(values: Values, state: State, after: State) -> None:
        samples = [prepare(image) for image in values[source]]
        store(values, session.predict_batch(samples, max_batch=most))

    return run, value


def _plan_tensors(name: str, stage: Model, planning: Planning, session: Session) -> tuple[Operation, Value]:
    assert stage.inputs is not None
    inputs = {spec.name: spec for spec in session.inputs}
    outputs = {spec.name: spec for spec in session.outputs}
    _check_filled(stage, inputs)
    states = [_state(name, entry, inputs, outputs, planning) for entry in stage.state]
    sources = [
        (model_input, reference, fitting(planning.value(reference), inputs[model_input]))
        for model_input, reference in stage.inputs.items()
    ]
    constants = {key: _constant(inputs[key], number) for key, number in stage.constants.items()}
    kept = {entry.output for entry in stage.state}
    shown = [spec for spec in session.outputs if spec.name not in kept] or list(session.outputs)
    sizes: dict[str, int] = {}
    for model_input, reference in stage.inputs.items():
        sizes |= sizes_of(planning.value(reference), inputs[model_input])
    shapes = {spec.name: [sizes.get(n, n) if isinstance(n, str) else n for n in spec.shape] for spec in shown}
    value = Value(kind="parts", parts={spec.name: tensor(spec.dtype, *shapes[spec.name]) for spec in shown})
    rows = store_rows(planning, name, value)
    call = session.run
    if len(sources) == len(states) == len(rows) == 1 and not constants:
        return _one_of_each(sources[0], states[0], rows[0], call), value

    def run(values: Values, state: State, after: State) -> None:
        feeds: dict[str, Array] = dict(constants)
        for model_input, reference, fit in sources:
            feeds[model_input] = values[reference] if fit is None else fit(values[reference])
        for model_input, _, key in states:
            feeds[model_input] = state[key]
        given = call(feeds)
        for part, words in rows:
            values[words] = given[part]
        for _, output, key in states:
            after[key] = given[output]

    return run, value


def _one_of_each(
    source: tuple[str, str, Callable[[Array], Array] | None],
    recurrent: tuple[str, str, str],
    row: tuple[str, str],
    call: Callable[[Mapping[str, Array]], Mapping[str, Array]],
) -> Operation:
    """Return what runs a recurrent model of one input: most are, and a step of sound is short."""
    (model_input, reference, fit), (before, output, key), (part, words) = source, recurrent, row

    def run(values: Values, state: State, after: State) -> None:
        value = values[reference]
        given = call({model_input: value if fit is None else fit(value), before: state[key]})
        values[words] = given[part]
        after[key] = given[output]

    return run


def _check_filled(stage: Model, inputs: Mapping[str, TensorSpec]) -> None:
    assert stage.inputs is not None
    filled = [*stage.inputs, *stage.constants, *(entry.input for entry in stage.state)]
    unknown = [key for key in filled if key not in inputs]
    missing = [key for key in inputs if key not in filled]
    problems = [f"the model has no input {', '.join(map(repr, unknown))}"] if unknown else []
    if missing:
        problems.append(f"nothing fills its input {', '.join(map(repr, missing))}")
    if problems:
        raise PipelineError(f"{'; '.join(problems)}; it takes {', '.join(map(str, inputs.values()))}")


def _state(
    name: str,
    entry: RecurrentState,
    inputs: Mapping[str, TensorSpec],
    outputs: Mapping[str, TensorSpec],
    planning: Planning,
) -> tuple[str, str, str]:
    """Return the input, the output and the name in the state of one recurrent tensor."""
    before, after = inputs[entry.input], outputs.get(entry.output)
    if after is None:
        raise PipelineError(f"state: the model has no output {entry.output!r}; it has {', '.join(outputs)}")
    if not before.is_static:
        raise PipelineError(f"state: {before} has no fixed size: compile the model with its shape pinned")
    if before.dtype != after.dtype or (after.is_static and after.shape != before.shape):
        raise PipelineError(f"state: {after} cannot be the next {before}")
    return entry.input, entry.output, planning.keeps(f"{name}.{entry.input}", before, entry.initial)


def _constant(spec: TensorSpec, number: float) -> Array:
    try:
        return constant_input(spec, number)
    except InputError as e:
        raise PipelineError(f"constants: {e}") from e


def sample_color(manifest: Manifest) -> str | None:
    """Return the order of channels in which the pipeline of a model takes an image; None if it takes none."""
    decodes = [step.color for step in _steps(manifest) if isinstance(step, Decode)]
    return decodes[0] if len(decodes) == 1 else None


def prediction_of(manifest: Manifest) -> Value:
    """Return what is known of what the pipeline of a model makes."""
    after: tuple[Step, ...] = () if manifest.pipeline is None else manifest.pipeline.postprocess
    labels = () if manifest.pipeline is None else manifest.pipeline.labels
    if any(isinstance(step, Detection) for step in after):
        return prediction_of_boxes(labels)
    makers = [step for step in after if isinstance(step, TopK | Threshold)]
    if makers and not any(step.step in ("embedding", "reconstruction_error") for step in after):
        return prediction_of_classes(labels)
    if any(step.step == "embedding" for step in after):
        return Value(kind="parts", parts={"embedding": tensor("float32", "d")})
    if any(step.step == "reconstruction_error" for step in after):
        anomaly = {"anomaly": Value(kind="flag")} if makers else {}
        return Value(kind="parts", parts={"anomaly_score": Value(kind="number"), **anomaly})
    return Value(
        kind="parts", parts={spec.name: tensor(spec.dtype, *spec.shape) for spec in manifest.outputs}
    )


def _steps(manifest: Manifest) -> tuple[Step, ...]:
    return () if manifest.pipeline is None else manifest.pipeline.preprocess


def _sample_of(key: str, value: Value, manifest: Manifest) -> Callable[[Any], Any]:
    """Return how a value becomes the sample of a model with a pipeline."""
    steps = _steps(manifest)
    color = sample_color(manifest)
    if value.kind == "image":
        if color is None:
            raise PipelineError(f"{key}: expected a model whose pipeline decodes images, to give it one")
        from edgec.runtime.pipeline import convert_color

        before = value.color
        return _same if before == color else lambda image: convert_color(image, before, color)
    if value.kind == "text":
        if not any(isinstance(step, Tokenize) for step in steps):
            raise PipelineError(f"{key}: expected a model whose pipeline tokenizes texts, to give it one")
        return _same
    if value.kind != "tensor" or color is not None or any(isinstance(step, Tokenize) for step in steps):
        raise PipelineError(f"{key}: the pipeline of the model does not take {value}")
    return _same


def _same(value: Any) -> Any:
    return value
