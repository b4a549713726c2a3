"""Prefills the next turn's context while the agent is busy with something else."""
