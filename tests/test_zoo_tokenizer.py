"""A network of the zoo that was trained elsewhere reads with the tokenizer that its card names."""

import json

from safetensors.torch import save_file

import vesalius as vs
from vesalius.architectures.toy import ToyTransformer
from vesalius.recipes.tokenizer import tokenizer_hash


def a_folder(folder, **card):
    module = ToyTransformer(n_layers=0, d_model=8, n_heads=2, d_vocab=2048, n_ctx=16)
    folder.mkdir()
    save_file(module.state_dict(), folder / "model.safetensors")
    (folder / "card.json").write_text(json.dumps({"shape": module.shape} | card))
    return str(folder)


def test_a_card_that_names_the_zoos_tokenizer_gets_it(tmp_path):
    model = vs.load(a_folder(tmp_path / "named", tokenizer={"sha256": tokenizer_hash()}))
    assert model.tokenizer is not None and model.bos == 0 and model.tokens("the").shape[1] > 1


def test_a_card_that_names_none_or_another_gets_none(tmp_path):
    assert vs.load(a_folder(tmp_path / "none")).tokenizer is None
    assert vs.load(a_folder(tmp_path / "another", tokenizer={"sha256": "0" * 64})).tokenizer is None
