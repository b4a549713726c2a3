"""A worker's main module: vLLM's API server, and nothing else.

The engine is a process of its own, and a process that is spawned imports its parent's main module again. Under
vLLM's own module that is the whole API server, seconds of a core at every start, of which an engine needs nothing.
"""

if __name__ == "__main__":
    from vllm.entrypoints.launchers.api_server.entry import main

    main()
