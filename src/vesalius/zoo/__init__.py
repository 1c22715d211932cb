"""Networks small enough to ship: weights, cards, their tokenizer and a held-out text; `recipes` made them all."""
