"""`shoal serve RUN`: a finished job's model behind HTTP, until Ctrl-C or SIGTERM.

One process, on the GPU if there is one. Requests are computed together (training.serving_batcher) without padding, as
`shoal predict` does, with the same labels. Nobody is asked who they are: it listens on this machine alone unless told
otherwise, and what faces others needs a proxy in front. What is asked and answered: training.serving_app.
"""

from __future__ import annotations

import socket
import sys
from pathlib import Path

import torch

from training.errors import UserError
from training.finished import open_run
from training.predict import Predictor, naming_full_card
from training.quiet import quiet_libraries

GRACE_SECONDS = 30
"""How long requests under way may take once the server has been asked to end."""


def serve(folder: Path, host: str, port: int) -> None:
    """Serve a run until the process is told to end: then what is under way is answered first.

    Port 0 takes a free one. Raises UserError where the run, the address or the libraries cannot be used.
    """
    try:
        import uvicorn

        from training.serving_app import Service, create_app
    except ImportError as error:
        raise UserError(
            f"shoal serve needs FastAPI and uvicorn, and {error.name} is not installed. Install them in Shoal's "
            "checkout: pip install -e '.[serve]'"
        ) from None
    quiet_libraries()
    run = open_run(folder)
    with bind(host, port) as listener:  # before the model is loaded: a port that is taken is said at once
        with naming_full_card(run):
            predictor = Predictor.load(run, torch.device("cuda" if torch.cuda.is_available() else "cpu"))
            predictor.logits(["the first takes longest"], lambda _: None)
        app = create_app(Service(predictor, run.spec.name, run.label_names, run.problem_type))
        config = uvicorn.Config(app, log_level="warning", access_log=False, timeout_graceful_shutdown=GRACE_SECONDS)
        listener.listen(config.backlog)
        address = f"[{host}]" if ":" in host else host
        print(f"serving {run.spec.name} at http://{address}:{listener.getsockname()[1]} (its documentation at /docs)")
        sys.stdout.flush()
        uvicorn.Server(config).run(sockets=[listener])


def bind(host: str, port: int) -> socket.socket:
    """Return a socket bound to an address, on which nobody is heard yet. Raises UserError where that fails."""
    listener = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((host, port))
    except (OSError, OverflowError) as error:
        listener.close()
        reason = error.strerror if isinstance(error, OSError) else "it is no port"
        raise UserError(
            f"--host {host} --port {port} cannot be listened on: {reason}. Choose another --port (0 takes a free one), "
            "or an address of this machine."
        ) from None
    return listener
