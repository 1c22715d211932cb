"""Networks and languages whose circuits are known, because we put them there: the test of the analyses."""

from vesalius.testbed.board_tracker import board_tracker
from vesalius.testbed.curve_network import curve_network
from vesalius.testbed.handwritten_induction import handwritten_induction
from vesalius.testbed.induction_task import induction_checkpoints, induction_task, repeated_blocks
from vesalius.testbed.modular_addition import modular_addition
from vesalius.testbed.planted_bigram import bigram_table, planted_bigram
from vesalius.testbed.planted_direction import planted_direction, planted_pairs, planted_texts
from vesalius.testbed.planted_skip_trigrams import planted_skip_trigrams
from vesalius.testbed.random_attn import random_attn
from vesalius.testbed.toy_superposition import planted_superposition, toy_superposition

__all__ = [
    "bigram_table",
    "board_tracker",
    "curve_network",
    "handwritten_induction",
    "induction_checkpoints",
    "induction_task",
    "modular_addition",
    "planted_bigram",
    "planted_direction",
    "planted_pairs",
    "planted_skip_trigrams",
    "planted_superposition",
    "planted_texts",
    "random_attn",
    "repeated_blocks",
    "toy_superposition",
]
