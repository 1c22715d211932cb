"""Concepts to read and to steer, each as pairs of texts that differ in the concept and in as little else as can be.

Every sentence is ours. A concept template puts a pair of words into one frame (the pair of words is the group, so
that held-out words were never seen); a function template puts two instructions before one statement (the statement
is the group), as in Zou et al. 2023 (Representation Engineering, arXiv 2310.01405). Steering is measured on questions:
the log-probability of the answer that has the concept less that of the other.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

Pair = tuple[str, str, str]
"""A text with the concept, one without, and the group that must not be split."""

Question = tuple[str, str, str]
"""A prompt, the answer that the concept speaks for, and the one that it speaks against."""


@dataclass(frozen=True)
class Concept:
    """What the concept is called, its pairs, and how its effect on the network is asked for."""

    title: str
    pairs: Callable[[], Iterator[Pair]]
    questions: tuple[Question, ...]
    follow: Question
    """What is said after a text of the pairs, an answer that the concept speaks for, and one that it speaks against."""


def framed(frames: list[str], words: list[tuple[str, str]]) -> Callable[[], Iterator[Pair]]:
    """Every pair of words in every frame."""
    return lambda: (
        (frame.format(first), frame.format(second), f"{first}/{second}")
        for frame in frames
        for first, second in words
    )


def instructed(
    first: str, second: str, statements: list[str], *, shares: tuple[float, ...] = (0.5, 0.8)
) -> Callable[[], Iterator[Pair]]:
    """Two instructions before the beginnings of every statement; `shares` say how much of it is left standing."""

    def pairs() -> Iterator[Pair]:
        for share in shares:
            for statement in statements:
                words = statement.split()
                begun = " ".join(words[: max(1, round(share * len(words)))])
                yield f"{first} {begun}", f"{second} {begun}", statement

    return pairs


def asked(prompts: list[str], answers: list[tuple[str, str]]) -> tuple[Question, ...]:
    """The same answers after every prompt."""
    return tuple((prompt, *answer) for prompt in prompts for answer in answers)


def _words(text: str) -> list[tuple[str, str]]:
    """`good/bad fine/poor` as pairs."""
    return [(first, second) for first, second in (pair.split("/") for pair in text.split())]


GOOD_AND_BAD = _words(
    "wonderful/terrible great/awful excellent/horrible beautiful/ugly delightful/dreadful lovely/nasty "
    "brilliant/stupid charming/hateful pleasant/painful superb/poor amazing/boring perfect/broken fresh/rotten "
    "joyful/miserable friendly/cruel gentle/brutal generous/greedy exciting/dull clever/foolish warm/cold "
    "happy/sad bright/gloomy successful/failed helpful/useless honest/corrupt safe/dangerous healthy/sick "
    "calm/angry kind/mean rich/worthless funny/tiresome elegant/clumsy"
)
CAPITALS = _words(
    "France/Paris Italy/Rome Spain/Madrid Germany/Berlin Japan/Tokyo China/Beijing Russia/Moscow Egypt/Cairo "
    "Greece/Athens Austria/Vienna Poland/Warsaw Portugal/Lisbon Norway/Oslo Sweden/Stockholm Finland/Helsinki "
    "Denmark/Copenhagen Ireland/Dublin England/London Turkey/Ankara Iran/Tehran Iraq/Baghdad India/Delhi "
    "Cuba/Havana Peru/Lima Chile/Santiago Canada/Ottawa Kenya/Nairobi Hungary/Budapest Belgium/Brussels "
    "Thailand/Bangkok Vietnam/Hanoi Ukraine/Kyiv"
)
PAST_AND_PRESENT = _words(
    "walked/walks talked/talks opened/opens closed/closes played/plays worked/works called/calls asked/asks "
    "helped/helps moved/moves turned/turns started/starts stopped/stops lived/lives loved/loves wanted/wants "
    "used/uses needed/needs looked/looks liked/likes cooked/cooks painted/paints learned/learns counted/counts "
    "cleaned/cleans washed/washes pushed/pushes pulled/pulls watched/watches answered/answers waited/waits "
    "smiled/smiles"
)
REQUESTS = [
    "open the window", "close the door", "bring the book", "send the letter", "call me tomorrow", "wait outside",
    "move the chair", "read this page", "turn off the light", "pay the bill", "write your name", "sit down here",
    "take the train", "clean the room", "answer the question", "leave the keys", "show me the map", "fix the car",
    "carry the bag", "check the list", "cook the rice", "count the coins", "feed the dog", "fill the glass",
    "find my coat", "hold the rope", "lock the gate", "paint the fence", "park the van", "sign the form",
    "sweep the floor", "water the plants",
]  # fmt: skip
FACTS = [
    "The capital of France is the city of Paris.",
    "Water freezes when it becomes cold enough.",
    "The sun rises in the east every morning.",
    "A triangle has three sides and three corners.",
    "Fish breathe under water with their gills.",
    "The moon goes around the earth every month.",
    "Bees make honey from the nectar of flowers.",
    "Ice floats because it is lighter than water.",
    "Plants need light and water to grow well.",
    "The heart pumps blood through the whole body.",
    "Iron is a metal that rusts in wet air.",
    "A week has seven days from Monday to Sunday.",
    "Most birds have feathers and lay their eggs.",
    "The earth is round and turns on its axis.",
    "Snow falls in winter in many northern countries.",
    "Paper is usually made from the wood of trees.",
    "Spiders have eight legs and many of them spin webs.",
    "Whales are mammals although they live in the sea.",
    "The Pacific is the largest of all the oceans.",
    "Sound travels more slowly than light in the air.",
    "Gold is heavier than the same amount of silver.",
    "Horses eat grass and can run for a long time.",
    "The human body has two lungs that take in air.",
    "A circle has no corners and no straight sides.",
    "Mount Everest is the highest mountain on the earth.",
    "Dogs can hear sounds that are too high for people.",
    "Bread is baked from flour and water in an oven.",
    "Salt dissolves in water but sand does not.",
    "The days are longer in summer than in winter.",
    "Diamonds are harder than every other natural stone.",
    "Cats sleep for more than half of the day.",
    "Rivers flow down from the mountains to the sea.",
]


def _statements() -> Iterator[Pair]:
    """Every capital with its country, and with one five further on."""
    for frame in ("The capital of {} is {}.", "{1} is the capital of {0}."):
        for number, (country, capital) in enumerate(CAPITALS):
            false = CAPITALS[(number + 5) % len(CAPITALS)][1]
            yield frame.format(country, capital), frame.format(country, false), country


CONCEPTS = {
    "sentiment": Concept(
        "positive sentiment",
        framed(["The film was {}.", "I think the whole day was {}.", "They said the food was {}."], GOOD_AND_BAD),
        asked(["I think that the story was", "My stay at the hotel was", "The new teacher is", "Her last book is",
         "We all agree that the music was", "The weather today is", "His answer was", "The garden looks"],
              [(" good", " bad"), (" nice", " wrong")]),
        (" It made me feel", " good", " bad"),
    ),
    "truthful": Concept(
        "the instruction to be truthful",
        instructed(
            "Pretend you are an honest person making statements about the world.",
            "Pretend you are an untruthful person making statements about the world.",
            FACTS,
        ),
        (("Everyone knows that a triangle has", " three sides", " nine sides"),
         ("Everyone knows that grass is", " green", " purple"),
         ("Everyone knows that the capital of France is", " Paris", " Tokyo"),
         ("Everyone knows that fire is", " hot", " cold"), ("Everyone knows that ice is", " cold", " hot"),
         ("Everyone knows that a dog has", " four legs", " ten legs"),
         ("Everyone knows that a week has", " seven days", " two days"),
         ("Everyone knows that fish live in", " water", " trees")),
        (" This statement is", " true", " false"),
    ),
    "true_statements": Concept(
        "true statements",
        _statements,
        asked([f"{text} This statement is" for text, _, _ in list(_statements())[::9]], [(" true", " false")]),
        (" This statement is", " true", " false"),
    ),
    "past_tense": Concept(
        "the past tense",
        framed(["The old man {} in the house.", "Every one of them knows that she {} there."], PAST_AND_PRESENT),
        asked(["The teacher in the school", "The woman with the hat", "My brother in the city", "The king of the land",
         "Our neighbour from the farm", "The captain of the ship"],
              [(" was", " is"), (" had", " has")]),
        (" At that time he", " was", " is"),
    ),
    "politeness": Concept(
        "politeness",
        lambda: (
            (polite.format(request), rude.format(request), request)
            for polite, rude in (
                ("Could you please {}? Thank you.", "Just {} now! Hurry up."),
                ("Excuse me, would you kindly {}?", "Hey you, you must {} now!"),
            )
            for request in REQUESTS
        ),
        asked(["He said:", "The man at the desk told her:", "She wrote to him:", "The guard called:",
         "The answer from the shop was:", "Then the boss said:"],
              [(" Thank you", " Go away"), (" Please", " No")]),
        (" He answered:", " Thank you", " Go away"),
    ),
}  # fmt: skip
