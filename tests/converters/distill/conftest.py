"""A task, a teacher that solves it, and files of both."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from edgelm_converters.data import Dataset
from edgelm_converters.keras_model import build_keras_model
from edgelm_converters.spec import Head, HeadLayer, Linear, Stack, TransformerSpec
from spec_factory import random_spec

WORDS, CLASSES = 48, 4

Classifier = Callable[..., TransformerSpec]
Task = Callable[..., Dataset]


def _classifier(**options: Any) -> TransformerSpec:
    few = {"norm": "rms", "biases": False, "embedding_norm": False, "norm_placement": "pre"}
    return random_spec(**{"vocabulary": WORDS, "positions": 16, "head": ((CLASSES, "linear"),), **few, **options})


def _task(seed: int, samples: int = 192, *, labelled: bool = True) -> Dataset:
    generator = np.random.default_rng(seed)
    labels = generator.integers(0, CLASSES, samples)
    ids = generator.integers(1, WORDS, (samples, 12))
    group = WORDS // CLASSES
    own = np.maximum(labels[:, None] * group + generator.integers(0, group, ids.shape), 1)
    ids = np.where(generator.random(ids.shape) < 0.45, own, ids).astype(np.int32)
    return Dataset("task", None, {"token_ids": ids}, tuple(map(str, labels)) if labelled else None)


@pytest.fixture(scope="session")
def classifier() -> Classifier:
    """Models of few variables: each is traced anew in each training, which is most of the time that a test takes."""
    return _classifier


@pytest.fixture(scope="session")
def task() -> Task:
    """Ids whose class is the group of words that they hold most of: what no single token tells."""
    return _task


@pytest.fixture(scope="session")
def teacher() -> TransformerSpec:
    """Four layers that solve the task by their weights: a word's group lies in its vector, and the mean counts groups."""
    spec = _classifier(layers=4)
    token = spec.embeddings.token.copy()
    token[:, :CLASSES] = 3 * np.eye(CLASSES)[np.arange(WORDS) * CLASSES // WORDS]
    counting = Linear("head", np.eye(spec.width, CLASSES, dtype=np.float32) * 6, None)

    def quiet(linear: Linear) -> Linear:
        return dataclasses.replace(linear, kernel=linear.kernel * np.float32(0.2))

    layers = tuple(
        dataclasses.replace(
            layer,
            attention=dataclasses.replace(layer.attention, output=quiet(layer.attention.output)),
            feed_forward=dataclasses.replace(layer.feed_forward, down=quiet(layer.feed_forward.down)),
        )
        for layer in spec.encoder.layers
    )
    embeddings = dataclasses.replace(spec.embeddings, token=token)
    head = Head("mean", (HeadLayer(counting, "linear"),), "logits")
    return dataclasses.replace(spec, embeddings=embeddings, encoder=Stack(layers), head=head)


@pytest.fixture(scope="session")
def files(teacher: TransformerSpec, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with ``teacher.keras`` and ``train.npz``."""
    folder = tmp_path_factory.mktemp("distil")
    build_keras_model(teacher).save(folder / "teacher.keras")
    data = _task(1)
    assert data.arrays is not None
    assert data.labels is not None
    np.savez(folder / "train.npz", **data.arrays, labels=np.array(data.labels, int))
    return folder
