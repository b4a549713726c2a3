"""Agent sessions as data: read, generated, placed on models and in time. Imports neither torch nor vLLM."""
