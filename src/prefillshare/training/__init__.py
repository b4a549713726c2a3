"""Cache-conditioned fine-tuning and the reference that everything else is checked against."""
