"""On a CPU, a worker's engine is a fork of its API server, which has imported all of vLLM already.

vLLM spawns it there: a new interpreter that imports everything once more, a third of what a worker's start costs
(`python -m experiments.worker_start`). Its reason is OpenMP, whose threads do not outlive a fork: a process whose
parent had computed with several of them waits for ever. Here the API server never has any.
"""

import os
import signal
import socket
import threading
from contextlib import suppress
from multiprocessing.context import BaseContext, ForkContext, ForkProcess

import torch
from vllm.logger import init_logger
from vllm.platforms import current_platform
from vllm.v1.engine import utils

from prefillshare.engine.command import METHOD_VARIABLE

logger = init_logger("vllm.prefillshare.forking")


def fork_engine() -> None:
    """Has this process, on a CPU, fork the engine that it is going to start. To be called before anything computes.

    If threads of Python's run by then, such as one that exports traces, the engine is started in vLLM's way: locks that
    they hold would be held in the fork for ever.
    """
    if not current_platform.is_cpu() or os.environ.get(METHOD_VARIABLE) == "spawn":
        return
    own_context = utils.get_mp_context
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # of this process, which only reads and writes; then OpenMP starts none

    class Engine(ForkProcess):
        def run(self) -> None:
            torch.set_num_threads(threads)
            leave_to_parent()
            super().run()

    class Context(ForkContext):
        Process = Engine

    def get_mp_context() -> BaseContext:
        others = [thread.name for thread in threading.enumerate() if thread is not threading.main_thread()]
        if others:
            logger.info("the engine is spawned, since threads run beside it: %s", ", ".join(others))
            return own_context()
        return Context()

    utils.get_mp_context = get_mp_context


def leave_to_parent() -> None:
    """What a forked process lets go of: the port that its parent listens on, and signals meant for its parent's loop.

    A port that the engine had, too, would take connections that nobody answers once the API server is gone.
    """
    signal.set_wakeup_fd(-1)
    nothing = os.open(os.devnull, os.O_RDWR)
    for name in os.listdir("/proc/self/fd"):
        with suppress(OSError):  # no socket, or the folder's own, which is closed by now
            with socket.socket(fileno=os.dup(int(name))) as found:
                ours = found.family in (socket.AF_INET, socket.AF_INET6)
            if ours:
                # Not closed: an object that still knows the number might close another file under it later.
                os.dup2(nothing, int(name), inheritable=False)
    os.close(nothing)
