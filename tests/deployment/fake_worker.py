"""Stands in for a vLLM worker: `fake_worker.py NAME PORT CONTROL_FOLDER`. Run as a script, standard library only.

Like vLLM it has a child that outlives it, deaf to SIGTERM. Files in the control folder make it misbehave:
NAME.crash at start, NAME.late listens when it is gone, NAME.never never healthy, NAME.hang health checks that do not
return, NAME.deaf ignores SIGTERM.
"""

import http.server
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

NAME, PORT, CONTROL = sys.argv[1], int(sys.argv[2]), Path(sys.argv[3])
CHILD = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); time.sleep(600)"


def told(what: str) -> bool:
    return (CONTROL / f"{NAME}.{what}").exists()


class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        while told("hang"):
            time.sleep(0.05)
        self.send_response(503 if told("never") else 200)
        self.end_headers()

    def log_message(self, format: str, *args: object) -> None:
        pass


if told("deaf"):
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
else:
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
print(f"{NAME} says hello", flush=True)
subprocess.Popen([sys.executable, "-I", "-S", "-c", CHILD])
if told("crash"):
    print("RuntimeError: out of luck", flush=True)
    sys.exit(3)
while told("late"):
    time.sleep(0.05)
server = http.server.ThreadingHTTPServer(("127.0.0.1", PORT), Handler)
threading.Thread(target=server.serve_forever, daemon=True).start()
while True:
    time.sleep(600)
