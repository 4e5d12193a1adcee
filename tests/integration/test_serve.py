"""`shoal serve` under load: every good request gets its right answer, whatever comes in between."""

from __future__ import annotations

import http.client
import json
import random
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from conftest import CHECKOUT, Train, environment

from launcher.cli import main

pytest.importorskip("fastapi", reason="needs FastAPI: pip install -e '.[serve]'")

GOOD, MALFORMED = 200, 50
HOST = "127.0.0.1"

FAULTS: list[tuple[str, str, bytes, int, str]] = [
    ("POST", "/predict", b'{"texts": [', 422, "JSON"),
    ("POST", "/predict", b'{"texts": []}', 422, "at least 1"),
    ("POST", "/predict", b'{"texts": ["a ship", "  "]}', 422, "texts.1: Value error, the text is empty"),
    ("POST", "/predict", b'{"texts": ["a ship", 7, null]}', 422, "texts.1"),
    ("POST", "/predict", b'{"texts": "a ship"}', 422, "valid list"),
    ("POST", "/predict", b'{"text": ["a ship"]}', 422, "Field required"),
    ("POST", "/predict", b'{"texts": ["half \\ud800 a character"]}', 422, "unicode"),
    ("POST", "/predict", b'{"texts": ["\xff\xfe"]}', 400, "parsing"),
    ("POST", "/predict", b"[" * 100_000, 400, "parsing"),
    ("POST", "/predict", b"", 422, "required"),
    ("POST", "/predict", json.dumps({"texts": ["a"] * 257}).encode(), 422, "at most 256"),
    ("POST", "/predict", json.dumps({"texts": ["a" * 100_001]}).encode(), 422, "at most 100000"),
    ("POST", "/predict", b" " * ((8 << 20) + 1), 413, "8,388,608 bytes"),
    ("GET", "/predict", b"", 405, "Method"),
    ("GET", "/nothing", b"", 404, "Not Found"),
]


class Server:
    """A server in its own process, and how to ask it."""

    def __init__(self, process: subprocess.Popen[str], port: int) -> None:
        self.process, self.port = process, port

    def ask(self, method: str, path: str, body: bytes = b"", **headers: str) -> tuple[int, Any]:
        connection = http.client.HTTPConnection(HOST, self.port, timeout=120)
        try:
            connection.request(method, path, body, {"content-type": "application/json", **headers})
            response = connection.getresponse()
            return response.status, json.loads(response.read())
        finally:
            connection.close()

    def predict(self, texts: list[str], **more: Any) -> tuple[int, Any]:
        return self.ask("POST", "/predict", json.dumps({"texts": texts, **more}).encode())


@pytest.fixture(scope="module")
def server(trained: Train) -> Iterator[Server]:
    words = [sys.executable, "-m", "launcher.cli", "serve", str(trained("fp32")), "--port", "0"]
    with subprocess.Popen(words, cwd=CHECKOUT, env=environment(), stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        said = process.stdout.readline()
        assert said.startswith("serving job at http://127.0.0.1:"), said
        yield Server(process, int(said.split(":")[2].split()[0]))
        process.terminate()


@pytest.fixture(scope="module")
def expected(trained: Train, corpus: Path) -> dict[str, tuple[str, float]]:
    """What the job itself predicted of its test texts: text -> label and probability."""
    texts = [json.loads(line)["text"] for line in (corpus / "test.jsonl").read_text().splitlines()]
    rows = [row for row in pq.read_table(trained("fp32") / "predictions.parquet").to_pylist() if row["split"] == "test"]
    powers = np.exp(np.array([row["logits"] for row in rows], dtype=np.float64))
    shares = (powers / powers.sum(axis=1, keepdims=True)).max(axis=1)
    return {text: (row["prediction"], float(share)) for text, row, share in zip(texts, rows, shares, strict=True)}


def require_right(texts: list[str], answer: tuple[int, Any], expected: dict[str, tuple[str, float]]) -> None:
    status, predictions = answer
    assert status == 200, predictions
    assert [prediction["label"] for prediction in predictions] == [expected[text][0] for text in texts]
    probabilities = [prediction["probability"] for prediction in predictions]
    np.testing.assert_allclose(probabilities, [expected[text][1] for text in texts], atol=1e-5)


def test_labels_are_those_of_the_job(server: Server, expected: dict[str, tuple[str, float]]) -> None:
    texts = list(expected)
    answer = server.predict(texts, probabilities=True)
    require_right(texts, answer, expected)
    for prediction in answer[1]:
        assert list(prediction["probabilities"]) == ["kitchen", "music", "sea"]
        assert sum(prediction["probabilities"].values()) == pytest.approx(1)
        assert prediction["probabilities"][prediction["label"]] == prediction["probability"]
    assert list(server.predict(texts[:1])[1][0]) == ["label", "probability"]


@pytest.mark.parametrize(("method", "path", "body", "status", "words"), FAULTS)
def test_what_cannot_be_answered_is_said_in_json(
    method: str, path: str, body: bytes, status: int, words: str, server: Server
) -> None:
    got, answer = server.ask(method, path, body)
    assert (got, list(answer)) == (status, ["error"]) and words in answer["error"]
    assert len(answer["error"]) < 500


def test_a_body_that_does_not_say_its_length_is_limited_too(server: Server) -> None:
    connection = http.client.HTTPConnection(HOST, server.port, timeout=120)
    connection.request("POST", "/predict", iter([b" " * (1 << 20)] * 9), {"content-type": "application/json"})
    response = connection.getresponse()
    assert response.status == 413 and "bytes" in json.loads(response.read())["error"]
    connection.close()
    assert server.ask("GET", "/health")[0] == 200


def test_health_and_openapi(server: Server) -> None:
    status, health = server.ask("GET", "/health")
    assert status == 200 and health["status"] == "ok" and health["labels"] == ["kitchen", "music", "sea"]
    status, description = server.ask("GET", "/openapi.json")
    assert status == 200 and set(description["paths"]) == {"/predict", "/health"}
    schemas = description["components"]["schemas"]
    assert schemas["Texts"]["examples"] == [{"texts": ["A text.", "Another one."]}]
    assert set(schemas["Prediction"]["properties"]) == {"label", "probability", "probabilities"}
    assert set(description["paths"]["/predict"]["post"]["responses"]) == {"200", "400", "413", "422", "503"}


def send_garbage(server: Server, number: int) -> None:
    """What is no HTTP, or a client that hangs up within its request."""
    with socket.create_connection((HOST, server.port), timeout=120) as connection:
        if number % 2:
            connection.sendall(b"\x00\xff no HTTP at all\r\n\r\n")
            connection.recv(1024)
        else:
            connection.sendall(b"POST /predict HTTP/1.1\r\nhost: x\r\ncontent-length: 500\r\n\r\n{")


def test_every_good_request_among_malformed_ones_gets_its_right_answer(
    server: Server, expected: dict[str, tuple[str, float]]
) -> None:
    draw = random.Random(0)
    good = [draw.choices(list(expected), k=draw.randint(1, 6)) for _ in range(GOOD)]

    def malformed(number: int) -> None:
        if number % 3 == 0:
            send_garbage(server, number)
            return
        method, path, body, status, _ = FAULTS[number % len(FAULTS)]
        assert server.ask(method, path, body)[0] == status

    with ThreadPoolExecutor(GOOD + MALFORMED) as clients:
        answers, others = [], []
        for number, texts in enumerate(good):
            answers.append(clients.submit(server.predict, texts))
            if number % (GOOD // MALFORMED) == 0:
                others.append(clients.submit(malformed, number))
        for texts, answer in zip(good, answers, strict=True):
            require_right(texts, answer.result(), expected)
        assert len(others) == MALFORMED
        for other in others:
            other.result()
    assert server.process.poll() is None
    assert server.ask("GET", "/health")[1]["status"] == "ok"
    require_right(good[0], server.predict(good[0]), expected)


def test_a_port_that_is_taken_is_said_at_once(
    server: Server, trained: Train, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["serve", str(trained("fp32")), "--port", str(server.port)]) == 2
    message = capsys.readouterr().err
    assert f"--port {server.port} cannot be listened on" in message and "loading" not in message


def test_without_its_libraries_the_command_that_installs_them_is_said(
    trained: Train, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "uvicorn", None)
    assert main(["serve", str(trained("fp32"))]) == 2
    assert "pip install -e '.[serve]'" in capsys.readouterr().err


def test_a_server_told_to_end_answers_what_is_under_way(server: Server, expected: dict[str, tuple[str, float]]) -> None:
    """The last test: it ends the server."""
    texts = list(expected)[:3]
    body = json.dumps({"texts": texts}).encode()
    head = f"POST /predict HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ncontent-length: {len(body)}\r\n\r\n"
    with socket.create_connection((HOST, server.port), timeout=120) as connection:
        connection.sendall(head.encode() + body[:10])
        assert server.ask("GET", "/health")[0] == 200  # it has taken the connection before this one
        server.process.send_signal(signal.SIGTERM)
        while True:  # until it takes no more
            try:
                socket.create_connection((HOST, server.port), timeout=120).close()
            except ConnectionRefusedError:
                break
            time.sleep(0.05)
        connection.sendall(body[10:])
        response = http.client.HTTPResponse(connection)
        response.begin()
        require_right(texts, (response.status, json.loads(response.read())), expected)
    assert server.process.wait(120) == -signal.SIGTERM
