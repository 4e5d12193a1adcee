"""What runs on every rank: job -> data, model, ZeRO engine, loop, evaluation, result. Never imports ray or launcher."""

__version__ = "0.1.0"
