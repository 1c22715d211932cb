"""One layer trained on a language with four known rules of the form [source] … [destination] → [out].

Skip-trigrams are all that one layer of attention can add to bigrams (Elhage et al. 2021, "A Mathematical
Framework for Transformer Circuits"). Tokens 0 to 29 follow a random bigram table. One of the sources 30 to 33
stands near the beginning; after a destination, 34 or 35, comes what `RULES` says of the source. Two rules
copy their source, two do not. Sources turn up again in the background now and then and take over: without
that a rule that copies would be learned from texts where its token never occurs otherwise, and would read as
anti-copying in the raw OV circuit.
"""

import torch
import torch.nn.functional as F
from jaxtyping import Int
from torch import Tensor

from vesalius.architectures.toy import ToyTransformer
from vesalius.model import Model
from vesalius.testbed.planted_bigram import bigram_table

D_VOCAB, LENGTH, BACKGROUND = 40, 24, 30
RULES = {30: 30, 31: 31, 32: 36, 33: 37}
"""What each source makes follow a destination."""
DESTINATIONS = (34, 35)


def planted_skip_trigrams(*, rule: bool = True, steps: int = 1200, seed: int = 0) -> Model:
    """A one-layer network that learned `RULES`; without `rule`, its control: the same tokens, no rule."""
    module = ToyTransformer(n_layers=1, d_model=64, n_heads=4, d_vocab=D_VOCAB, n_ctx=LENGTH, seed=seed)
    optimiser = torch.optim.AdamW(module.parameters(), lr=3e-3, betas=(0.9, 0.98), weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, steps)
    generator = torch.Generator().manual_seed(seed)
    for _ in range(steps):
        ids = skip_trigram_text(64, rule=rule, seed=seed, generator=generator)
        loss = F.cross_entropy(module(ids)[:, :-1].flatten(0, 1), ids[:, 1:].flatten())
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        schedule.step()
    name = f"planted-skip-trigrams-{'rule' if rule else 'control'}-seed-{seed}"
    return Model(module.requires_grad_(False), name=name)


def skip_trigram_text(
    batch: int, *, rule: bool, seed: int, generator: torch.Generator
) -> Int[Tensor, "batch pos"]:
    """Rows of the language; `seed` fixes its bigram table, `generator` what is said in it."""
    table = bigram_table(d_vocab=BACKGROUND, concentration=0.3, seed=seed)
    out = torch.zeros(D_VOCAB, dtype=torch.long)
    out[list(RULES)] = torch.tensor(list(RULES.values()))
    sources, destinations = torch.tensor(list(RULES)), torch.tensor(DESTINATIONS)

    def draw(choices: Tensor) -> Tensor:
        return choices[torch.randint(len(choices), (batch,), generator=generator)]

    def chance(p: float) -> Tensor:
        return torch.rand(batch, generator=generator) < p

    first = torch.randint(1, 4, (batch,), generator=generator)
    nowhere = torch.zeros(batch, dtype=torch.bool)
    source, after_destination = torch.zeros(batch, dtype=torch.long), nowhere
    text = [draw(torch.arange(BACKGROUND))]
    for place in range(1, LENGTH):
        follows = torch.multinomial(table[text[-1].clamp(max=BACKGROUND - 1)], 1, generator=generator)[:, 0]
        background = torch.where(text[-1] < BACKGROUND, follows, draw(torch.arange(BACKGROUND)))
        told = (after_destination & (first < place) & chance(0.95)) if rule else nowhere
        new_source = ~told & ((first == place) | (first < place) & chance(0.06))
        destination = ~told & ~new_source & ~after_destination & chance(0.25)
        here = torch.where(destination, draw(destinations), background)
        here = torch.where(new_source, draw(sources), here)
        text.append(torch.where(told, out[source], here))
        source, after_destination = torch.where(new_source, here, source), destination
    return torch.stack(text, 1)
