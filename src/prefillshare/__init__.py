"""Serve many fine-tuned models of one base over a shared context, at the cost of one prefill."""

__version__ = "0.1.0"
