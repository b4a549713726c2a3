"""What runs inside a vLLM process, and how such a process is started."""
