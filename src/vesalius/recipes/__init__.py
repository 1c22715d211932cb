"""Recipes: how the zoo's text, tokenizer and networks are made, each a file that reads from top to bottom."""

from vesalius.recipes.zoo import RECIPES, train

__all__ = ["RECIPES", "train"]
