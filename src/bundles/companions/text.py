"""Companions of text models (``transform`` of ``torchtext.models``' bundles)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from bundles.builders.require import require
from bundles.companions.needs import needs
from bundles.errors import BuildArgumentError, BuildError
from bundles.sources.fetch import fetch
from bundles.spec.bundle import Bundle

_PAD = "<pad>"  # of RoBERTa, XLM-R and T5 alike


class Tokenizer:
    """A callable from texts to the token ids that a model takes.

    It begins and ends a text as the model was trained, ``<s>`` and ``</s>`` for RoBERTa and XLM-R, ``</s>``
    after it for T5, and cuts it where it gets longer than the model takes.

    Args:
        tokenizer: a ``tokenizers.Tokenizer``.
        max_tokens: how long the ids of a text get at most, those at its ends among them.

    Attributes:
        tokenizer: the same, set to that length.
        pad_id: the id that fills up shorter texts in :meth:`batch`.

    Raises:
        BuildError: the tokenizer has no ``<pad>``.

    >>> from tokenizers import Tokenizer as Rules, models, pre_tokenizers
    >>> rules = Rules(models.WordLevel({"<pad>": 0, "good": 1, "morning": 2}, unk_token="<pad>"))
    >>> rules.pre_tokenizer = pre_tokenizers.Whitespace()
    >>> Tokenizer(rules, max_tokens=8).batch(["good morning", "good"])["input_ids"]
    tensor([[1, 2],
            [1, 0]])
    """

    def __init__(self, tokenizer: Any, max_tokens: int) -> None:
        pad_id = tokenizer.token_to_id(_PAD)
        if pad_id is None:
            raise BuildError(f"The tokenizer has no {_PAD!r}, which fills up the shorter texts of a batch.")
        tokenizer.no_padding()
        tokenizer.enable_truncation(max_tokens)
        self.tokenizer = tokenizer
        self.pad_id: int = pad_id

    def __call__(self, text: str | Sequence[str]) -> Any:
        """Return the ids of a text, ``list[int]``; of several, a list of such lists.

        Raises:
            BuildArgumentError: it is neither a text nor several.
        """
        _check_text(text)
        if isinstance(text, str):
            return self.tokenizer.encode(text).ids
        return [encoding.ids for encoding in self.tokenizer.encode_batch(list(text))]

    def batch(self, texts: Sequence[str]) -> dict[str, Tensor]:
        """Return what the model takes, as ``model(**tokenizer.batch(texts))``.

        Returns:
            ``input_ids``, ``[batch, tokens]``, padded on the right, and ``attention_mask`` of the same
            shape, 1 where a token is valid.

        Raises:
            BuildArgumentError: ``texts`` is no list of at least one text.
        """
        if isinstance(texts, str) or len(texts) == 0:
            raise BuildArgumentError("A batch is a list of at least one text, as batch(['a text']).")
        rows = [torch.tensor(ids) for ids in self(texts)]
        lengths = torch.tensor([len(row) for row in rows])
        ids = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=self.pad_id)
        return {"input_ids": ids, "attention_mask": (torch.arange(ids.shape[1]) < lengths[:, None]).long()}

    def decode(self, ids: Any) -> Any:
        """Return the text of ids, without ``<s>``, ``</s>`` and ``<pad>``; of lists of them a list of texts.

        Args:
            ids: ``[tokens]`` or ``[batch, tokens]``, lists or a tensor, as ``generate()`` of a T5 gives.
        """
        ids = ids.tolist() if isinstance(ids, Tensor) else list(ids)
        if ids and not isinstance(ids[0], int):
            return [self.tokenizer.decode(list(row)) for row in ids]
        return self.tokenizer.decode(ids)


@needs("tokenizer", "max_tokens")
def transform(bundle: Bundle) -> Tokenizer:
    """Return a callable from texts to token ids.

    Its file is fetched at the first call. The ids are torchtext's; what differs from its transforms is
    in ``docs/torchtext.md``.

    Raises:
        MissingDependencyError: tokenizers is not installed.
        SourceError: the file cannot be had.
        BuildError: it is no ``tokenizer.json``.

    >>> import bundles
    >>> bundles.ROBERTA_BASE_ENCODER.max_tokens, bundles.ROBERTA_BASE_ENCODER.assets["tokenizer"].name
    (256, 'tokenizer.json')
    """
    tokenizers = require("tokenizers")
    path = fetch(bundle.assets["tokenizer"])
    return Tokenizer(_read(tokenizers, path, bundle.name), bundle.metadata["max_tokens"])


def _read(tokenizers: Any, path: Path, name: str) -> Any:
    try:
        return tokenizers.Tokenizer.from_file(str(path))
    except Exception as error:  # the library raises nothing narrower
        raise BuildError(f"The tokenizer of {name}, {path}, is no tokenizer.json ({error}).") from error


def _check_text(text: object) -> None:
    several = isinstance(text, Sequence) and all(isinstance(entry, str) for entry in text)
    if not several:  # a str is one, too
        raise BuildArgumentError(f"A {type(text).__name__} is neither a text nor a list of texts.")
