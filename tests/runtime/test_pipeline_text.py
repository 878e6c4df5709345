"""From text to tokens, with a tokenizer that the test builds."""

from __future__ import annotations

from typing import Any

import pytest
from tests.runtime.pipelines import Step, processor, spec

from edgec.errors import PipelineError
from edgec.runtime.pipeline import Processor

tokenizers = pytest.importorskip("tokenizers")
WORDS = ["<pad>", "[UNK]", "[CLS]", "[SEP]", "the", "cat", "sat", "down"]


@pytest.fixture(scope="module")
def tokenizer() -> bytes:
    made = tokenizers.Tokenizer(
        tokenizers.models.WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="[UNK]")
    )
    made.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    made.post_processor = tokenizers.processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[("[CLS]", 2), ("[SEP]", 3)],
    )
    content: str = made.to_str()
    return content.encode()


def text_model(
    content: bytes, step: Step | None = None, dtype: str = "int64", length: int | str = "n"
) -> Processor:
    names = ("input_ids", "attention_mask", "token_type_ids")
    steps = [{"step": "tokenize", "file": "tokenizer.json", **(step or {})}]
    return processor(
        steps,
        [],
        [spec(name, dtype, 1, length) for name in names],
        files={"tokenizer.json": content}.__getitem__,
    )


def rows(made: Processor, sample: Any) -> dict[str, list[int]]:
    inputs, _ = made.preprocess(sample)
    assert all(array.shape[0] == 1 for array in inputs.values())
    return {name: array[0].tolist() for name, array in inputs.items()}


def test_a_text_becomes_the_inputs_of_the_model(tokenizer: bytes) -> None:
    assert rows(text_model(tokenizer), "the cat flew") == {
        "input_ids": [2, 4, 5, 1, 3],
        "attention_mask": [1, 1, 1, 1, 1],
        "token_type_ids": [0, 0, 0, 0, 0],
    }


def test_two_texts_belong_together(tokenizer: bytes) -> None:
    assert rows(text_model(tokenizer), ("the cat", "sat")) == {
        "input_ids": [2, 4, 5, 3, 6, 3],
        "attention_mask": [1] * 6,
        "token_type_ids": [0, 0, 0, 0, 1, 1],
    }


def test_rows_are_padded_and_cut_to_what_the_model_takes(tokenizer: bytes) -> None:
    fixed = text_model(tokenizer, {"max_length": 6, "padding": "max_length"}, "int32", 6)
    assert rows(fixed, "cat") == {
        "input_ids": [2, 5, 3, 0, 0, 0],
        "attention_mask": [1, 1, 1, 0, 0, 0],
        "token_type_ids": [0] * 6,
    }
    assert rows(fixed, "the cat sat down the cat sat")["input_ids"] == [2, 4, 5, 6, 7, 3]
    assert fixed.preprocess("cat")[0]["input_ids"].dtype == "int32"


def test_the_padding_of_the_file_is_kept(tokenizer: bytes) -> None:
    library = tokenizers.Tokenizer.from_buffer(tokenizer)
    library.enable_padding(direction="left", pad_id=7, pad_token="down", pad_type_id=1, length=50)
    library.enable_truncation(2)
    content = library.to_str().encode()
    fixed = text_model(content, {"max_length": 5, "padding": "max_length"}, length=5)
    assert rows(fixed, "cat") == {
        "input_ids": [7, 7, 2, 5, 3],
        "attention_mask": [0, 0, 1, 1, 1],
        "token_type_ids": [1, 1, 0, 0, 0],
    }
    # What the step leaves out is not taken from the file.
    assert rows(text_model(content), "the cat sat")["input_ids"] == [2, 4, 5, 6, 3]


def test_special_tokens_may_be_left_out(tokenizer: bytes) -> None:
    assert rows(text_model(tokenizer, {"special_tokens": False}), "the cat")["input_ids"] == [4, 5]


def test_a_long_text_is_refused_where_it_may_not_be_cut(tokenizer: bytes) -> None:
    made = text_model(tokenizer, {"max_length": 4, "truncation": False})
    assert rows(made, "the cat")["input_ids"] == [2, 4, 5, 3]
    with pytest.raises(PipelineError, match="the text has 5 tokens, at most 4 are allowed"):
        made.preprocess("the cat sat")


@pytest.mark.parametrize("sample", [3, b"the cat", ("a", "b", "c"), ("a", 3), ["a", "b"], None])
def test_what_is_no_text_is_refused(tokenizer: bytes, sample: Any) -> None:
    with pytest.raises(PipelineError, match="expected a text or a tuple of two"):
        text_model(tokenizer).preprocess(sample)


def test_tokens_that_were_made_elsewhere_are_taken(tokenizer: bytes) -> None:
    tokens = {"input_ids": [2, 5, 3], "attention_mask": [1, 1, 1], "token_type_ids": [0, 0, 0]}
    assert rows(text_model(tokenizer), tokens) == tokens
    with pytest.raises(PipelineError, match="the sample lacks input attention_mask"):
        text_model(tokenizer).preprocess({"input_ids": [2], "token_type_ids": [0]})
    assert rows(text_model(tokenizer), {"input_ids": "the cat"})["input_ids"] == [2, 4, 5, 3]


def test_only_inputs_that_the_model_has_are_filled(tokenizer: bytes) -> None:
    steps = [{"step": "tokenize", "file": "t.json", "ids": "tokens", "mask": "seen"}]
    inputs = [spec("tokens", "int64", 1, "n"), spec("seen", "int64", 1, "n"), spec("speed", "float32", 1)]
    made = processor(steps, [], inputs, files=lambda _: tokenizer)
    got = made.preprocess({"tokens": "cat", "speed": 2})[0]
    assert {name: array.tolist() for name, array in got.items()} == {
        "tokens": [[2, 5, 3]],
        "seen": [[1, 1, 1]],
        "speed": [2],
    }


@pytest.mark.parametrize(
    "content", [b"", b"{}", b"\xff\xfe", b"[" * 10_000, b'{"version": "1.0", "model": 3}']
)
def test_what_is_no_tokenizer_is_refused(content: bytes) -> None:
    with pytest.raises(PipelineError, match=r"tokenizer.json is no tokenizer.json that tokenizers can read"):
        text_model(content)


def test_the_file_must_be_at_hand() -> None:
    steps = [{"step": "tokenize", "file": "t.json"}]
    with pytest.raises(PipelineError, match=r"needs the content of 't.json': pass files="):
        processor(steps, [], [spec("input_ids", "int64", 1, "n")])
