"""Writes small dictionaries by the packages whose formats we read, with what they compute on a few rows.

Run where sae-lens and dictionary-learning are installed: `python written_by_their_packages.py FOLDER`. Its output is
beside this file, so that the formats are checked where the packages are not.
"""

import json
import sys
import types
from importlib.util import find_spec
from pathlib import Path

import torch
from safetensors.torch import save_file

WIDTH, LATENTS, ROWS = 6, 12, 12


def randomised(module: torch.nn.Module, seed: int) -> torch.nn.Module:
    """Every parameter drawn anew, thresholds above 0."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            drawn = 0.7 * torch.randn(parameter.shape, generator=generator)
            parameter.copy_(drawn.abs() if "threshold" in name else drawn)
    return module.eval()


def keep(folder: Path, module: torch.nn.Module, rows: torch.Tensor) -> None:
    """What the package itself computes."""
    with torch.no_grad():
        codes = module.encode(rows)
        made = module(rows)
    save_file(
        {"rows": rows, "codes": codes.contiguous(), "made": made.contiguous()},
        folder / "expected.safetensors",
    )


def saelens(home: Path, rows: torch.Tensor) -> None:
    from sae_lens import (
        GatedSAE,
        GatedSAEConfig,
        JumpReLUSAE,
        JumpReLUSAEConfig,
        JumpReLUTranscoder,
        JumpReLUTranscoderConfig,
        SkipTranscoder,
        SkipTranscoderConfig,
        StandardSAE,
        StandardSAEConfig,
        TopKSAE,
        TopKSAEConfig,
        Transcoder,
        TranscoderConfig,
    )
    from sae_lens.saes.batchtopk_sae import BatchTopKTrainingSAE, BatchTopKTrainingSAEConfig
    from sae_lens.saes.sae import SAE, SAEMetadata

    meta = {"hook_name": "blocks.1.hook_resid_pre"}
    sizes = {"d_in": WIDTH, "d_sae": LATENTS}
    kinds = {
        "standard": (StandardSAE, StandardSAEConfig(**sizes, metadata=SAEMetadata(**meta))),
        "gated": (GatedSAE, GatedSAEConfig(**sizes, metadata=SAEMetadata(**meta))),
        "jumprelu": (
            JumpReLUSAE,
            JumpReLUSAEConfig(**sizes, apply_b_dec_to_input=False, metadata=SAEMetadata(**meta)),
        ),
        "topk": (
            TopKSAE,
            TopKSAEConfig(**sizes, k=3, rescale_acts_by_decoder_norm=True, metadata=SAEMetadata(**meta)),
        ),
    }
    across = SAEMetadata(hook_name="blocks.1.ln2.hook_normalized", hook_name_out="blocks.1.hook_mlp_out")
    for name, made, config in (
        ("transcoder", Transcoder, TranscoderConfig),
        ("skip_transcoder", SkipTranscoder, SkipTranscoderConfig),
        ("jumprelu_transcoder", JumpReLUTranscoder, JumpReLUTranscoderConfig),
    ):
        kinds[name] = (made, config(**sizes, d_out=4, apply_b_dec_to_input=False, metadata=across))
    for seed, (name, (kind, config)) in enumerate(kinds.items()):
        module = randomised(kind(config), seed)
        module.save_model(home / name)
        keep(home / name, module, rows)
    trained = randomised(
        BatchTopKTrainingSAE(BatchTopKTrainingSAEConfig(**sizes, k=3, metadata=SAEMetadata(**meta))), 20
    )
    trained.topk_threshold += 0.6
    trained.save_inference_model(home / "batchtopk")
    keep(home / "batchtopk", SAE.load_from_disk(home / "batchtopk").eval(), rows)


def dictionary_learning(home: Path, rows: torch.Tensor) -> None:
    if find_spec("nnsight") is None:  # it is imported for language models, which are not needed here
        sys.modules["nnsight"] = types.ModuleType("nnsight")
        sys.modules["nnsight"].LanguageModel = None
    from dictionary_learning.dictionary import (
        AutoEncoder,
        AutoEncoderNew,
        GatedAutoEncoder,
        JumpReluAutoEncoder,
    )
    from dictionary_learning.trainers.batch_top_k import BatchTopKSAE
    from dictionary_learning.trainers.matryoshka_batch_top_k import MatryoshkaBatchTopKSAE
    from dictionary_learning.trainers.top_k import AutoEncoderTopK

    kinds = {
        AutoEncoder: (),
        AutoEncoderNew: (),
        GatedAutoEncoder: (),
        JumpReluAutoEncoder: (),
        AutoEncoderTopK: (3,),
        BatchTopKSAE: (3,),
        MatryoshkaBatchTopKSAE: (3, [4, 8]),
    }
    for seed, (kind, more) in enumerate(kinds.items()):
        module = randomised(kind(WIDTH, LATENTS, *more), 40 + seed)
        if kind in (BatchTopKSAE, MatryoshkaBatchTopKSAE):
            module.threshold += 1.4
        folder = home / kind.__name__
        folder.mkdir(parents=True, exist_ok=True)
        torch.save(module.state_dict(), folder / "ae.pt")
        trainer = {"dict_class": kind.__name__, "layer": 1, "submodule_name": "resid_post_layer_1"}
        trainer |= {"k": more[0]} if more else {}
        (folder / "config.json").write_text(json.dumps({"trainer": trainer}))
        if kind is AutoEncoder:
            torch.manual_seed(0)  # its loader tries itself on random rows
        keep(folder, kind.from_pretrained(str(folder / "ae.pt")), rows)


if __name__ == "__main__":
    home = Path(sys.argv[1])
    rows = torch.randn(ROWS, WIDTH, generator=torch.Generator().manual_seed(9))
    saelens(home / "saelens", rows)
    dictionary_learning(home / "dictionary_learning", rows)
