"""Rows that behave like text embeddings, in any number, any part of them made again on its own.

Independent Gaussian rows make every index look hopeless and blobs make every index look perfect.
These are neither: a row is the unit vector of

    mean + topic + sub-topic + a few "words" + noise

where a topic's sub-topics and words follow Zipf's law, the words of a row come from the vocabulary
of the whole collection or of its topic, the tightness of the noise differs by sub-topic, and every
offset has the power-law spectrum of real embeddings. The parameters were fitted to sentence
embeddings: an IVF index finds about as much of the true neighbours here as there.

The rows come in blocks of ``BLOCK``, and block ``b`` depends on the seed, the dimension and ``b``
alone, so several processes can make the parts of one collection in any order. Offsets are not stored
by topic or word but looked up by hash in a table of ``2 * POOL`` vectors: memory does not grow with
the collection.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from threadpoolctl import threadpool_limits

FloatArray = NDArray[np.float32]
HashArray = NDArray[np.uint64]

#: Bumped when the same seed would give other rows.
VERSION = 1
#: Rows in a block, the unit of random draws.
BLOCK = 16_384
#: Vectors in each half of the table: offsets of topics, sub-topics and words; offsets of noise.
POOL = 16_384
#: Queries of the rows' own distribution are the rows of a block that no collection reaches.
HELD_OUT_BLOCK = 1 << 40

#: Rows put together at a time: their terms stay in the processor's cache.
_TILE = 64
#: Vectors of the table made at a time.
_TABLE_STEP = 2_048
_GOLDEN = np.uint64(0x9E3779B97F4A7C15)


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """What the rows are like. The defaults were fitted to real sentence embeddings.

    Variances are shares of 1 before the mean is added; what topics, sub-topics and words leave over
    is noise.
    """

    mean: float = 0.32  #: length of the direction that all rows share
    topics: int = 94
    topic_zipf: float = 0.0  #: exponent of Zipf's law; 0 is uniform
    topic_variance: float = 0.043846473956640625
    subtopics: int = 17  #: in each topic
    subtopic_zipf: float = 0.454236732443968
    subtopic_variance: float = 0.2953780088314826
    words: int = 6  #: in each row
    vocabulary: int = 23  #: words of a context to choose from
    word_zipf: float = 1.037192746762242
    word_variance: float = 0.3772180088473126  #: of all words of a row together
    word_decay: float = 0.6706233317028347  #: variance of a word over that of the word before it
    common_words: float = 0.535248578318551  #: chance that a word is of the whole collection
    topic_words: float = 0.5968188528112304  #: of its topic; what is left to 1, of its sub-topic
    tightness_spread: float = 0.5657443243136475  #: a sub-topic's noise is e^-this to e^this as long
    spectrum: tuple[float, float] = (45, 1.8)  #: (a, p): the i-th variance goes as (i + a)^-p
    noise_spectrum: tuple[float, float] = (300, 4.0)

    shifted_noise: float = 1.4  #: shifted queries: noise this many times as long,
    shifted_length: float = 0.25  #: moved this far in a direction of their own,
    shifted_flatness: float = 0.5  #: and Zipf exponents this share flatter

    @property
    def noise_variance(self) -> float:
        return max(0.0, 1 - self.topic_variance - self.subtopic_variance - self.word_variance)


DEFAULT = Recipe()


class Realistic:
    """A collection of unit rows without end.

    Parameters
    ----------
    dim : int
        Dimension of the rows.
    seed : int
        Another seed gives another collection.
    recipe : Recipe
        What the rows are like.
    table : (2 * POOL + 2, dim) float32, optional
        What ``fill_table`` gave for the same dimension, seed and recipe, for instance mapped from a
        file that several processes share. Made here where it is not given (134 MB at 1024-d).
    """

    def __init__(
        self, dim: int, *, seed: int = 0, recipe: Recipe = DEFAULT, table: FloatArray | None = None
    ) -> None:
        self.dim = dim
        self.seed = seed
        self.recipe = recipe
        if table is None:
            table = np.empty(table_shape(dim), np.float32)
            fill_table(table, seed=seed, recipe=recipe)
        self._table = table
        self._mean = recipe.mean * table[-2]
        self._shifted_mean = self._mean + np.float32(recipe.shifted_length) * table[-1]

    def block(self, b: int, *, shifted: bool = False) -> Block:
        """Draw block ``b``: which offsets its rows are made of, not yet the rows.

        Parameters
        ----------
        b : int
            The rows ``b * BLOCK`` to ``(b + 1) * BLOCK`` of the collection.
        shifted : bool
            Draw queries that do not follow the rows' distribution: as another kind of text does, they
            share the topics and words but are noisier, moved, and more evenly spread over the topics.
        """
        r = self.recipe
        flatness = 1 - r.shifted_flatness if shifted else 1.0
        noise_length = r.shifted_noise if shifted else 1.0
        random = np.random.Generator(np.random.Philox(key=[2 * self.seed + shifted, b]))

        # A topic, a sub-topic or a word is a hash: of its context's hash and its number there.
        root = _mix(np.full(BLOCK, self.seed + 1, np.uint64))
        topic = _child(root, _zipf(random, r.topics, r.topic_zipf * flatness))
        subtopic = _child(topic, _zipf(random, r.subtopics, r.subtopic_zipf * flatness) + np.uint64(1))

        terms = np.empty((BLOCK, 2 + r.words + 2), np.intp)
        lengths = np.empty(terms.shape, np.float64)
        terms[:, 0] = topic % np.uint64(POOL)
        terms[:, 1] = subtopic % np.uint64(POOL)
        lengths[:, 0] = np.sqrt(r.topic_variance)
        lengths[:, 1] = np.sqrt(r.subtopic_variance)

        word_variances = r.word_decay ** np.arange(r.words)
        word_variances *= r.word_variance / word_variances.sum()
        for j in range(r.words):
            where = random.random(BLOCK)
            context = np.where(
                where < r.common_words,
                root,
                np.where(where < r.common_words + r.topic_words, topic, subtopic),
            )
            word = _child(context, _zipf(random, r.vocabulary, r.word_zipf) + np.uint64(7))
            terms[:, 2 + j] = word % np.uint64(POOL)
            lengths[:, 2 + j] = np.sqrt(word_variances[j])

        # Noise is the sum or difference of two vectors of a large pool: 2^28 different ones.
        uniform = (_mix(subtopic + np.uint64(99)) >> np.uint64(11)).astype(np.float64) / 2**53
        tightness = np.exp(r.tightness_spread * (2 * uniform - 1))
        noise = np.sqrt(r.noise_variance / 2) * noise_length * tightness
        terms[:, -2] = POOL + random.integers(0, 1 << 62, BLOCK) % POOL
        terms[:, -1] = POOL + random.integers(0, 1 << 62, BLOCK) % POOL
        lengths[:, -2] = noise
        lengths[:, -1] = noise * random.choice([-1.0, 1.0], BLOCK)

        lengths *= np.sqrt(1 - r.mean**2)
        return Block(self._table, self._shifted_mean if shifted else self._mean, terms, lengths)


class Block:
    """``BLOCK`` rows as the offsets they are made of; any part of them can be had."""

    def __init__(
        self,
        table: FloatArray,
        mean: FloatArray,
        terms: NDArray[np.intp],
        lengths: NDArray[np.float64],
    ) -> None:
        self._table = table
        self._mean = mean
        self._terms = terms
        self._lengths = lengths.astype(np.float32)
        self._buffer = np.empty((_TILE, terms.shape[1], table.shape[1]), np.float32)

    def rows(self, start: int = 0, stop: int = BLOCK, *, out: FloatArray | None = None) -> FloatArray:
        """Rows ``start`` to ``stop`` of the block: (stop - start, dim) float32 of unit length."""
        x = np.empty((stop - start, len(self._mean)), np.float32) if out is None else out
        for tile in range(start, stop, _TILE):
            end = min(tile + _TILE, stop)
            part = x[tile - start : end - start]
            # mode="clip" writes straight into the buffer; the default would go through another.
            offsets = self._buffer[: end - tile]
            np.take(self._table, self._terms[tile:end], axis=0, out=offsets, mode="clip")
            np.einsum("ij,ijd->id", self._lengths[tile:end], offsets, out=part)
            part += self._mean
            part /= np.sqrt(np.einsum("id,id->i", part, part))[:, None]
        return x


def table_shape(dim: int) -> tuple[int, int]:
    """Two pools of offsets, then the mean direction and the direction of shifted queries."""
    return 2 * POOL + 2, dim


def fill_table(table: FloatArray, *, seed: int, recipe: Recipe = DEFAULT) -> None:
    """Make the table of offsets: Gaussian, of the recipe's spectra, in a random rotation.

    Parameters
    ----------
    table : ``table_shape(dim)`` float32, written
        May be mapped from a file: it is made part by part.
    seed : int
        The collection's seed.
    recipe : Recipe
        What the rows are like.
    """
    dim = table.shape[1]
    random = np.random.default_rng(seed)

    def fill(part: FloatArray, spectrum: tuple[float, float]) -> None:
        start, power = spectrum
        variances = (np.arange(dim) + float(start)) ** -float(power)
        lengths = np.sqrt(variances / variances.sum()).astype(np.float32)
        for first in range(0, len(part), _TABLE_STEP):
            step = part[first : first + _TABLE_STEP]
            np.matmul(random.standard_normal(step.shape).astype(np.float32) * lengths, rotation, out=step)

    # The bits of a matrix product change with the number of threads.
    with threadpool_limits(1, user_api="blas"):
        rotation = np.linalg.qr(random.standard_normal((dim, dim)))[0].astype(np.float32)
        fill(table[:POOL], recipe.spectrum)
        fill(table[POOL : 2 * POOL], recipe.noise_spectrum)
        fill(table[2 * POOL :], recipe.spectrum)
    table[2 * POOL :] /= np.linalg.norm(table[2 * POOL :], axis=1, keepdims=True)


def open_table(path: Path, dim: int) -> FloatArray:
    """Map a table that was filled in a file of nothing else."""
    return np.memmap(path, np.float32, mode="r", shape=table_shape(dim))


def create_table(path: Path, dim: int, *, seed: int, recipe: Recipe = DEFAULT) -> None:
    """Fill a table in a file, for several processes to map."""
    table = np.memmap(path, np.float32, mode="w+", shape=table_shape(dim))
    fill_table(table, seed=seed, recipe=recipe)
    table.flush()


def _mix(h: HashArray) -> HashArray:
    """Scramble 64 bits (the finaliser of SplitMix64); overflow is meant."""
    h = (h ^ (h >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    h = (h ^ (h >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return h ^ (h >> np.uint64(31))


def _child(context: HashArray, number: HashArray) -> HashArray:
    mixed: HashArray = _mix(context + number * _GOLDEN)
    return mixed


def _zipf(random: np.random.Generator, count: int, exponent: float) -> HashArray:
    """``BLOCK`` numbers below ``count``, number i about (i + 1)^-exponent as often as 0."""
    u = random.random(BLOCK)
    if abs(exponent - 1) < 1e-6:
        value = np.exp(u * np.log(count + 1.0))
    else:
        value = (((count + 1.0) ** (1 - exponent) - 1) * u + 1) ** (1 / (1 - exponent))
    number: HashArray = np.minimum(value.astype(np.int64) - 1, count - 1).astype(np.uint64)
    return number
