"""A worker's main module: vLLM's API server, and nothing else.

The engine is a process of its own. Where it is spawned, it imports its parent's main module again: under vLLM's own
module the whole API server, seconds of a core at every start, of which an engine needs nothing. On a CPU it is forked.
"""

if __name__ == "__main__":
    from vllm.entrypoints.launchers.api_server.entry import main

    from prefillshare.engine.forking import fork_engine

    fork_engine()
    main()
