"""What runs on every rank: job -> data, model, ZeRO engine, loop, evaluation, result. Never imports ray or launcher."""

import logging

import training.quick_imports  # noqa: F401

__version__ = "0.1.0"

# As it is imported, bitsandbytes advises installing a package that fetches kernels from the hub.
logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
