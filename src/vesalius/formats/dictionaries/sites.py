"""What other libraries call the site of a dictionary, as an address."""

import re

from vesalius.errors import VesaliusError

HOOKS = {
    "hook_resid_pre": "resid_pre@{}",
    "hook_resid_mid": "resid_mid@{}",
    "hook_resid_post": "resid_post@{}",
    "hook_attn_out": "attn_out@{}",
    "hook_mlp_out": "mlp_out@{}",
    "mlp.hook_post": "neurons@{}",
    "mlp.hook_out": "mlp_out@{}",
    "hook_mlp_in": "mlp_in@{}",
    "mlp.hook_in": "mlp_in@{}",
    "ln2.hook_normalized": "mlp_in@{}",
    "attn.hook_z": "z@{}",
}
"""TransformerLens's names within a block. `attn.hook_z` is read there with all heads side by side."""


def site_of_hook(hook: str, layer: int | None = None) -> str:
    """The address of a hook: `blocks.8.hook_resid_pre`, or the part within a block and its layer.

    >>> site_of_hook("blocks.8.hook_resid_pre"), site_of_hook("mlp.hook_post", 2)
    ('resid_pre@8', 'neurons@2')

    Another name is taken as the module of the user's own network, and stays.
    """
    match = re.fullmatch(r"blocks\.(\d+)\.(.+)", hook)
    number, part = (int(match[1]), match[2]) if match else (layer, hook)
    return HOOKS[part].format(number) if part in HOOKS and number is not None else hook


def site_of_words(words: str, *, layer: int | None = None) -> str:
    """The address meant by words such as `resid_post_layer_8`; empty if they do not say.

    >>> site_of_words("mlp_out_layer_3"), site_of_words("resid_post", layer=1), site_of_words("somewhere")
    ('mlp_out@3', 'resid_post@1', '')
    """
    match = re.fullmatch(r"(resid_pre|resid_mid|resid_post|attn_out|mlp_out)(?:_layer_(\d+))?", words)
    number = int(match[2]) if match and match[2] else layer
    return f"{match[1]}@{number}" if match and number is not None else words if "." in words else ""


def known(site: str, path: object) -> str:
    """The address if there is one; raises VesaliusError that says how to give it."""
    if not site:
        raise VesaliusError(
            f"'{path}' does not say which activations it is of; open it by read_dictionary(path, site='resid_post@8') "
            "and save it as one of ours"
        )
    return site
