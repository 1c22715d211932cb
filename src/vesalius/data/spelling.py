"""How tokens are spelled: which are the same but for case and space, and which two make a third.

Words are numbered, so that a million pairs can be compared with tensors; -1 is a spelling no token has.
"""

import torch
from jaxtyping import Int
from torch import Tensor


class Spelling:
    """A vocabulary by spelling: `exact` without surrounding space, `loose` also without case and a final s.

    >>> spelling = Spelling([" Ralph", "R", "alph", "ALPH", " two", "Two", "."])
    >>> (spelling.loose[4] == spelling.loose[5]).item(), (spelling.exact[4] == spelling.exact[5]).item()
    (True, False)
    >>> [(spelling.joined(torch.tensor([1]), torch.tensor([b])) == spelling.exact[0]).item() for b in (2, 3)]
    [True, False]
    >>> (spelling.joined_loosely(torch.tensor([1]), torch.tensor([3])) == spelling.loose[0]).item()
    True
    """

    def __init__(self, words: list[str]):
        self.words = words
        self.bare = [word.strip() for word in words]
        forms = dict.fromkeys([*self.bare, *map(_loose, words)])
        forms.pop("", None)
        self.numbers = {form: number for number, form in enumerate(forms)}
        self.exact = torch.tensor([self.numbers.get(word, -1) for word in self.bare])
        self.loose = torch.tensor([self.numbers.get(_loose(word), -1) for word in words])

    def joined(self, first: Int[Tensor, "*pair"], second: Int[Tensor, "*pair"]) -> Int[Tensor, "*pair"]:
        """The exact spelling that two tokens make, one after the other."""
        return self._numbers([self.bare[a] + self.words[b] for a, b in _pairs(first, second)], first, second)

    def joined_loosely(
        self, first: Int[Tensor, "*pair"], second: Int[Tensor, "*pair"]
    ) -> Int[Tensor, "*pair"]:
        """The loose spelling two tokens make, whatever the case of the second and the space before it."""
        return self._numbers(
            [_loose(self.bare[a] + self.bare[b]) for a, b in _pairs(first, second)], first, second
        )

    def _numbers(self, forms: list[str], first: Tensor, second: Tensor) -> Tensor:
        known = torch.tensor([self.numbers.get(form, -1) for form in forms]).reshape(first.shape)
        return known.where((self.exact[first] >= 0) & (self.exact[second] >= 0), torch.tensor(-1))


def _pairs(first: Tensor, second: Tensor) -> list[tuple[int, int]]:
    return list(zip(first.flatten().tolist(), second.flatten().tolist()))


def _loose(word: str) -> str:
    """A final s goes only where a word of three letters or more is left."""
    bare = word.strip().casefold()
    return bare[:-1] if len(bare) > 3 and bare.endswith("s") else bare
