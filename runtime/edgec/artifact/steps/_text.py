"""Steps on text."""

from __future__ import annotations

from edgec.artifact.steps._step import Step, flag, json_member, key, one_of, text, whole


class Tokenize(Step, step="tokenize"):
    """Turn a text, or a tuple of two that belong together, into tokens.

    The file is a `tokenizer.json` of the Hugging Face tokenizers library; it travels in the artifact.
    Of the three inputs that the step can fill, those that the model has are filled.
    """

    file: str = key(json_member(), "Tokenizer file; in a TOML file a path, relative to that file.")
    max_length: int = key(whole(1, 65536), "Longest row, in tokens.", default=512)
    padding: str = key(
        one_of("none", "max_length"), "Whether a shorter row is filled up to `max_length`.", default="none"
    )
    truncation: bool = key(flag(), "Whether a longer row is cut; an error where it is not.", default=True)
    special_tokens: bool = key(flag(), "Whether the tokenizer adds its own, such as [CLS].", default=True)
    ids: str = key(text(), "Model input that takes the token ids.", default="input_ids")
    mask: str = key(
        text(), "Model input that takes 1 for a token and 0 for padding.", default="attention_mask"
    )
    types: str = key(text(), "Model input that takes the number of the text.", default="token_type_ids")
