"""Shapes in signatures are checked while the tests run, and only then (jaxtyping and beartype)."""

import sys

import jaxtyping

assert "vesalius" not in sys.modules, "vesalius was imported before its shape checks could be installed"
jaxtyping.install_import_hook("vesalius", "beartype.beartype")
