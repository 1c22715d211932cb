"""Directions: reading vectors of 512 pairs at every layer of a GPT-2 with random weights, against steering-vectors and
repeng, and steered generation against plain generation of the same network.

All read the same texts with the same tokenizer, in batches of 32. steering-vectors takes the mean of the differences
by default and so do we: they must agree. repeng centres differences in fixed order, which is no direction to agree with
(G13), so that only cost is compared, with our PCA.
"""

from collections.abc import Callable
from functools import cache, partial
from importlib.resources import files

import torch
import torch.nn.functional as F
from torch import Tensor

import vesalius as vs
from vesalius.concepts.concept_vectors import concept_activations
from vesalius.concepts.readers import difference_of_means, read_directions
from vesalius.concepts.steered import steering_edits
from vesalius.data.concepts import CONCEPTS
from vesalius.data.pairs import Pairs, open_pairs
from vesalius.dictionaries.control_vector import ControlVector
from vesalius.generation import generate

PAIRS, LAYERS, WIDTH, VOCABULARY = 512, 12, 768, 50_257


@cache
def gpt2(layers: int = LAYERS, width: int = WIDTH) -> vs.Model:
    from tokenizers import Tokenizer
    from transformers import GPT2Config, GPT2LMHeadModel

    config = GPT2Config(n_layer=layers, n_embd=width, n_head=width // 64, vocab_size=VOCABULARY)
    torch.manual_seed(0)
    tokenizer = Tokenizer.from_file(str(files("vesalius.zoo") / "tokenizer.json"))
    return vs.Model(GPT2LMHeadModel(config).eval(), tokenizer=tokenizer, name="gpt2-random")


@cache
def texts(count: int = PAIRS) -> Pairs:
    """Every built-in pair, plain and then after a word or two, as many as are asked for."""
    found = [
        (before + p, before + n, g)
        for before in ("", "Well, ", "They say: ", "And so ")
        for concept in CONCEPTS
        for p, n, g in zip(
            *(getattr(open_pairs(concept), side) for side in ("positive", "negative", "groups"))
        )
    ]
    positive, negative, groups = zip(*found[:count])
    return Pairs("bench", positive, negative, groups)


def peers_tokenizer():
    from transformers import PreTrainedTokenizerFast

    made = PreTrainedTokenizerFast(tokenizer_object=gpt2().tokenizer)
    made.pad_token = made.convert_ids_to_tokens(0)
    return made


def ours(count: int = PAIRS) -> Callable[[], Tensor]:
    model, pairs = gpt2(), texts(count)

    def run() -> Tensor:
        acts = concept_activations(model, pairs)
        return F.normalize(difference_of_means(acts.positive, acts.negative), dim=-1).float()

    return run


def our_pca(count: int = PAIRS) -> Callable[[], Tensor]:
    model, pairs = gpt2(), texts(count)

    def run() -> Tensor:
        acts = concept_activations(model, pairs, layers=range(1, LAYERS))
        return read_directions(acts.positive, acts.negative, reader="pca")

    return run


def steering_vectors(count: int = PAIRS) -> Callable[[], Tensor]:
    from steering_vectors import train_steering_vector

    model, tokenizer, pairs = gpt2(), peers_tokenizer(), texts(count)
    samples = list(zip(pairs.positive, pairs.negative))

    def run() -> Tensor:
        found = train_steering_vector(model.module, tokenizer, samples, batch_size=32).layer_activations
        return F.normalize(torch.stack([found[layer] for layer in range(LAYERS)]), dim=-1)

    return run


def repeng(count: int = PAIRS) -> Callable[[], Tensor]:
    import numpy

    numpy.float_ = numpy.float64  # repeng 0.4 was written for numpy 1
    from repeng.extract import DatasetEntry, read_representations

    model, tokenizer, pairs = gpt2(), peers_tokenizer(), texts(count)
    entries = [DatasetEntry(p, n) for p, n in zip(pairs.positive, pairs.negative)]

    def run() -> Tensor:
        found = read_representations(model.module, tokenizer, entries)
        return torch.stack([torch.from_numpy(found[layer]) for layer in range(1, LAYERS)])

    return run


def generation(strength: float | None) -> Callable[[], Tensor]:
    """24 tokens after 8 prompts of 16, steered at every layer, or plain."""
    model = gpt2()
    generator = torch.Generator().manual_seed(0)
    prompts = torch.randint(VOCABULARY, (8, 16), generator=generator)
    vector = ControlVector({layer: torch.randn(WIDTH, generator=generator) for layer in range(LAYERS)})
    edits = None if strength is None else steering_edits(model, vector, strength=strength)
    return lambda: torch.tensor(generate(model, prompts, tokens=24, edits=edits))


steered_generation, plain_generation = partial(generation, 0.01), partial(generation, None)
