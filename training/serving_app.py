"""The HTTP side of `shoal serve`: what is asked and answered, its limits and its errors, as a FastAPI application.

    POST /predict   {"texts": ["..."], "probabilities": false}  ->  [{"label": "...", "probability": 0.9}]
                    or, of a job whose texts have several labels,   [{"labels": ["...", "..."]}]
    GET  /health    200 while it answers, else 503
    GET  /docs, /openapi.json

Every error is {"error": "..."}: 400 the body is no text, 413 it is too large, 422 what is asked cannot be answered, 503
too much waits.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, MutableMapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from typing import Annotated, Any

import numpy as np
import numpy.typing as npt
from fastapi import FastAPI, HTTPException, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from pydantic import AfterValidator, BaseModel, ConfigDict, Field
from starlette.exceptions import HTTPException as StarletteHTTPException

from training import __version__
from training.multi_label import labels_over_threshold, sigmoid
from training.predict import Predictor, rounded, softmax
from training.serving_batcher import Batcher, Overloaded
from training.spec import MULTI_LABEL, SINGLE_LABEL, ProblemType
from training.tokens import TokenizedSplit, join_splits

MAX_TEXTS = 256
MAX_CHARACTERS = 100_000
"""Of a text; what lies beyond the tokens that are read (`data.long_text`) costs tokenizing."""
MAX_BODY_BYTES = 8 << 20
MAX_DISCARDED_BYTES = 64 << 20
"""Read of a body that is too large before its client is cut off."""
MAX_WAITING_TOKENS = 1 << 20
WAIT_SECONDS = 0.005
"""How long a request waits for others to be computed with."""
MAX_FAULTS = 3
"""Named in one error."""
MAX_LABELS = 50
"""Named in the description."""

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]


def _not_blank(text: str) -> str:
    if not text.strip():
        raise ValueError("the text is empty")
    return text


class Texts(BaseModel):
    """What is asked."""

    model_config = ConfigDict(
        extra="forbid", strict=True, json_schema_extra={"examples": [{"texts": ["A text.", "Another one."]}]}
    )
    texts: Annotated[
        list[Annotated[str, Field(max_length=MAX_CHARACTERS), AfterValidator(_not_blank)]],
        Field(min_length=1, max_length=MAX_TEXTS, description="Texts to label, answered in their order."),
    ]
    probabilities: Annotated[bool, Field(description="Give the probability of every label.")] = False


class Prediction(BaseModel):
    """The answer for one text, as `shoal predict` gives it."""

    label: str
    probability: Annotated[float, Field(description="Of the label.")]
    probabilities: Annotated[dict[str, float] | None, Field(description="Of every label, if asked.")] = None


class LabelsPrediction(BaseModel):
    """The answer for one text that may have several labels, as `shoal predict` gives it."""

    labels: Annotated[list[str], Field(description="Those whose probability is over 0.5.")]
    probabilities: Annotated[dict[str, float] | None, Field(description="Of every label, if asked.")] = None


class Health(BaseModel):
    """How the server is, and what it serves."""

    status: str
    name: str
    version: str
    labels: list[str]
    waiting_tokens: int


class Fault(BaseModel):
    """What was wrong."""

    error: str


class BodyLimit:
    """ASGI middleware: a body of more than `max_bytes` is answered with 413, and never held in memory."""

    def __init__(self, app: Callable[[Scope, Receive, Send], Awaitable[None]], max_bytes: int) -> None:
        self.app, self.max_bytes = app, max_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        left = self.max_bytes

        async def limited() -> MutableMapping[str, Any]:
            nonlocal left
            message = await receive()
            left -= len(message.get("body", b""))
            if left < 0:
                await _discard(receive, message)
                raise self._too_large()
            return message

        length = dict(scope["headers"]).get(b"content-length", b"0")
        if length.isdigit() and int(length) > self.max_bytes:
            await _discard(receive, {"type": "http.request", "more_body": True})
            error = self._too_large()
            response = JSONResponse({"error": error.detail}, error.status_code, headers={"connection": "close"})
            await response(scope, receive, send)
            return
        await self.app(scope, limited, send)

    def _too_large(self) -> StarletteHTTPException:
        return StarletteHTTPException(413, f"the body has more than {self.max_bytes:,} bytes. Send fewer texts at once")


async def _discard(receive: Receive, last: MutableMapping[str, Any]) -> None:
    """Read what is left of a body: a client that is cut off while it sends does not hear the answer."""
    left = MAX_DISCARDED_BYTES
    while left > 0 and last["type"] == "http.request" and last.get("more_body", False):
        last = await receive()
        left -= len(last.get("body", b""))


class Service:
    """A finished job's model and the two threads that work for it. Opened and closed in the event loop that asks."""

    def __init__(
        self, predictor: Predictor, name: str, label_names: list[str], problem_type: ProblemType = SINGLE_LABEL
    ) -> None:
        self.predictor, self.name, self.label_names = predictor, name, label_names
        self.is_multi_label = problem_type == MULTI_LABEL
        self.batcher: Batcher[TokenizedSplit, npt.NDArray[np.float32]] | None = None
        # A tokenizer serves one thread at a time.
        self.tokenizing = ThreadPoolExecutor(max_workers=1, thread_name_prefix="tokenizer")

    @asynccontextmanager
    async def running(self, _: FastAPI) -> AsyncIterator[None]:
        """Answer within this context; at its end what waits is answered first."""
        self.batcher = Batcher(
            self._compute,
            budget=self.predictor.token_budget,
            wait_seconds=WAIT_SECONDS,
            max_waiting=MAX_WAITING_TOKENS,
        )
        yield
        await self.batcher.close()
        self.tokenizing.shutdown()

    async def predict(self, asked: Texts) -> list[Prediction] | list[LabelsPrediction]:
        """Return label and probability of each text, or its labels, in their order. Raises Overloaded."""
        assert self.batcher is not None
        loop = asyncio.get_running_loop()
        split = await loop.run_in_executor(self.tokenizing, self.predictor.encode, asked.texts)
        logits = await self.batcher.ask(split, len(split.tokens))
        if self.is_multi_label:
            return to_labels_predictions(logits, self.label_names, asked.probabilities)
        return to_predictions(logits, self.label_names, asked.probabilities)

    def health(self) -> Health:
        """Return how it is, and what it serves."""
        is_alive = self.batcher is not None and self.batcher.is_alive
        return Health(
            status="ok" if is_alive else "failing",
            name=self.name,
            version=__version__,
            labels=self.label_names,
            waiting_tokens=self.batcher.waiting_size if self.batcher else 0,
        )

    def _compute(self, splits: list[TokenizedSplit]) -> list[npt.NDArray[np.float32]]:
        """Return the logits of several requests, computed as one."""
        logits = self.predictor.logits_of(join_splits(splits), lambda _: None)
        return np.split(logits, np.cumsum([len(split) for split in splits])[:-1])


def create_app(service: Service) -> FastAPI:
    """Return the application that answers for a service."""
    app = FastAPI(
        title=f"Shoal: {service.name}",
        description=f"Labels texts as {'any' if service.is_multi_label else 'one'} of: "
        f"{', '.join(service.label_names[:MAX_LABELS])}.",
        version=__version__,
        lifespan=service.running,
    )
    app.add_middleware(BodyLimit, max_bytes=MAX_BODY_BYTES)
    _answer_errors_in_json(app)

    @app.post(
        "/predict",
        response_model=list[LabelsPrediction] if service.is_multi_label else list[Prediction],
        response_model_exclude_none=True,
        summary="Label texts",
        responses={400: {"model": Fault}, 413: {"model": Fault}, 422: {"model": Fault}, 503: {"model": Fault}},
    )
    async def predict(asked: Texts) -> list[Prediction] | list[LabelsPrediction]:
        """Return label and probability of each text, or its labels, in their order."""
        try:
            return await service.predict(asked)
        except Overloaded:
            raise HTTPException(503, "too much waits already. Try again in a second", {"retry-after": "1"}) from None

    @app.get("/health", response_model=Health, summary="Whether it answers", responses={503: {"model": Health}})
    async def health() -> JSONResponse:
        """Say how the server is, and what it serves."""
        state = service.health()
        return JSONResponse(state.model_dump(), 200 if state.status == "ok" else 503)

    return app


def to_predictions(logits: npt.NDArray[np.float32], label_names: list[str], probabilities: bool) -> list[Prediction]:
    """Return the answers of logits [texts, labels]."""
    shares = softmax(logits)
    return [
        Prediction(
            label=label_names[index],
            probability=probability,
            probabilities=dict(zip(label_names, rounded(row), strict=True)) if probabilities else None,
        )
        for index, probability, row in zip(logits.argmax(axis=1), rounded(shares.max(axis=1)), shares, strict=True)
    ]


def to_labels_predictions(
    logits: npt.NDArray[np.float32], label_names: list[str], probabilities: bool
) -> list[LabelsPrediction]:
    """Return the answers of logits [texts, labels] where a text may have several labels."""
    return [
        LabelsPrediction(
            labels=labels, probabilities=dict(zip(label_names, rounded(row), strict=True)) if probabilities else None
        )
        for labels, row in zip(labels_over_threshold(logits, label_names), sigmoid(logits), strict=True)
    ]


def _answer_errors_in_json(app: FastAPI) -> None:
    """Answer every error as {"error": ...}, without the text that was sent."""

    @app.exception_handler(RequestValidationError)
    async def cannot_be_answered(_: Request, error: RequestValidationError) -> JSONResponse:
        faults = error.errors()
        said = [f"{'.'.join(map(str, fault['loc']))}: {_words(fault)}" for fault in faults[:MAX_FAULTS]]
        more = [f"and {len(faults) - MAX_FAULTS} more faults"] if len(faults) > MAX_FAULTS else []
        return JSONResponse({"error": "; ".join([*said, *more])}, 422)

    @app.exception_handler(StarletteHTTPException)
    async def refused(_: Request, error: StarletteHTTPException) -> JSONResponse:
        return JSONResponse({"error": error.detail}, error.status_code, headers=error.headers)

    @app.exception_handler(Exception)
    async def failed(_: Request, error: Exception) -> JSONResponse:
        logging.getLogger("uvicorn.error").error("%s: %s", type(error).__name__, error)
        return JSONResponse({"error": "the server failed at this; its log says how"}, 500)


def _words(fault: Any) -> str:
    """Return what is wrong with a value; a wrong character in JSON by its own message."""
    reason = fault.get("ctx", {}).get("error")
    return f"{fault['msg']}: {reason}" if fault["type"] == "json_invalid" else str(fault["msg"])
