"""Preprocessing of text, with the tokenizers library."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from edgec.artifact import TensorSpec
from edgec.artifact.steps import Tokenize
from edgec.errors import PipelineError
from edgec.errors.extras import needs_extra
from edgec.runtime.pipeline._plan import Array, expect

Tokenizer = Callable[[Any], dict[str, Array]]
"""From a text, or a tuple of two, to the inputs of the model, each [1, tokens]."""


def plan_tokenize(step: Tokenize, inputs: dict[str, TensorSpec]) -> dict[str, TensorSpec]:
    """Return which of the model's inputs the step fills.

    Raises:
        PipelineError: The model does not take token ids under the name that the step says, or an input cannot
            hold what the step gives.
    """
    expect(
        step.ids in inputs,
        f"tokenize: the model has no input {step.ids!r} (key ids); it has {', '.join(inputs)}",
    )
    filled = {name: inputs[name] for name in (step.ids, step.mask, step.types) if name in inputs}
    for spec in filled.values():
        expect(
            np.dtype(spec.dtype).kind in "iu" and len(spec.shape) == 2,
            f"tokenize: expected an input of integers [batch, tokens], the model has {spec}",
        )
        length = spec.shape[1]
        if isinstance(length, int):
            expect(
                step.padding == "max_length" and step.max_length == length,
                f"tokenize: the model takes rows of {length} tokens: set max_length = {length} "
                'and padding = "max_length"',
            )
    return filled


def make_tokenizer(step: Tokenize, filled: dict[str, TensorSpec], content: bytes) -> Tokenizer:
    """Make the function that turns a text into model inputs.

    Raises:
        MissingExtraError: The library is not installed.
        PipelineError: The file is no tokenizer.
    """
    library = _load(step, content)
    dtypes = {name: np.dtype(spec.dtype) for name, spec in filled.items()}

    def tokenize(sample: Any) -> dict[str, Array]:
        encoding = _encode(library, sample, step.special_tokens)
        if len(encoding.ids) > step.max_length:
            raise PipelineError(
                f"tokenize: the text has {len(encoding.ids)} tokens, at most {step.max_length} are allowed: "
                "shorten it, or set truncation = true"
            )
        fields = ((step.ids, "ids"), (step.mask, "attention_mask"), (step.types, "type_ids"))
        return {
            name: np.array([getattr(encoding, field)], dtypes[name])
            for name, field in fields
            if name in dtypes
        }

    return tokenize


def _load(step: Tokenize, content: bytes) -> Any:
    with needs_extra("text preprocessing", "text"):
        from tokenizers import Tokenizer as Library
    try:
        library = Library.from_buffer(content)
    except Exception as e:  # the library raises bare Exception for a bad file
        raise PipelineError(
            f"tokenize: {step.file} is no tokenizer.json that tokenizers can read: {e}"
        ) from e
    library.no_truncation()
    if step.truncation:
        library.enable_truncation(step.max_length)
    padding = library.padding or _default_padding(library)
    library.no_padding()
    if step.padding == "max_length":
        kept = {k: padding[k] for k in ("direction", "pad_id", "pad_type_id", "pad_token") if k in padding}
        library.enable_padding(length=step.max_length, **kept)
    return library


def _default_padding(library: Any) -> dict[str, Any]:
    """Return what to pad with where the file does not say: the token that is called so."""
    for token in ("[PAD]", "<pad>"):
        if (number := library.token_to_id(token)) is not None:
            return {"pad_id": number, "pad_token": token}
    return {}


def _encode(library: Any, sample: Any, special_tokens: bool) -> Any:
    if isinstance(sample, str):
        return library.encode(sample, add_special_tokens=special_tokens)
    if isinstance(sample, tuple) and len(sample) == 2 and all(isinstance(text, str) for text in sample):
        return library.encode(*sample, add_special_tokens=special_tokens)
    raise PipelineError(f"tokenize: expected a text or a tuple of two, got {type(sample).__name__}")
