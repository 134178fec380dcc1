"""The parts, one package per stage. `anypo.parts.ratio.MinPrefix()` in Python is `min-prefix` on the command line."""

from anypo.parts import collect, credit, critic, knobs, ratio, reduce, score, step, store, terms, trust

__all__ = ["collect", "credit", "critic", "knobs", "ratio", "reduce", "score", "step", "store", "terms", "trust"]
