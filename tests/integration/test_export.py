"""`shoal export`: base with head and LoRA weights, as what vLLM's loader reads of them, and as transformers loads them.

vLLM itself is not run here. What its loader asks of names and settings is in training/export.py.
"""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from conftest import Train
from peft import PeftModel
from safetensors.torch import load_file
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from launcher.cli import main

LORA_NAME = re.compile(
    r"base_model\.model\.model\.layers\.\d+\.(self_attn\.[qkvo]|mlp\.(gate|up|down))_proj\.lora_[AB]\.weight"
)


def test_base_and_lora_weights_give_the_jobs_logits(
    trained: Train, corpus: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, output = trained("fp32"), tmp_path / "new" / "vllm"
    assert main(["export", str(folder), "--output", str(output), "--format", "vllm"]) == 0
    said = capsys.readouterr().out
    assert f"vllm serve {output / 'base'} --runner pooling --convert classify --enable-lora --max-lora-rank 16" in said
    assert f"--lora-modules job={output / 'adapter'}" in said and "vLLM itself has not been run" in said
    assert [path.name for path in output.parent.iterdir()] == ["vllm"]

    base = AutoModelForSequenceClassification.from_pretrained(output / "base")
    model = PeftModel.from_pretrained(base, output / "adapter").eval()
    tokenizer = AutoTokenizer.from_pretrained(output / "base")
    texts = [json.loads(line)["text"] for line in (corpus / "test.jsonl").read_text().splitlines()]
    with torch.no_grad():
        logits = model(**tokenizer(texts, padding=True, truncation=True, max_length=32, return_tensors="pt")).logits
    rows = [row for row in pq.read_table(folder / "predictions.parquet").to_pylist() if row["split"] == "test"]
    np.testing.assert_allclose(logits.numpy(), [row["logits"] for row in rows], atol=1e-4)


def test_names_and_settings_are_those_vllm_reads(trained: Train, tmp_path: Path) -> None:
    folder, output = trained("fp32"), tmp_path / "vllm"
    assert main(["export", str(folder), "--output", str(output), "--format", "vllm"]) == 0
    trained_weights = load_file(folder / "adapter" / "adapter_model.safetensors")

    config = json.loads((output / "base" / "config.json").read_text())
    assert config["architectures"] == ["LlamaForSequenceClassification"]
    assert config["id2label"] == {"0": "kitchen", "1": "music", "2": "sea"} and "quantization_config" not in config
    base = load_file(output / "base" / "model.safetensors")
    assert base["score.weight"].equal(trained_weights["base_model.model.score.weight"]) and "score.bias" not in base
    original_folder = json.loads((folder / "adapter" / "adapter_config.json").read_text())["base_model_name_or_path"]
    original = load_file(Path(original_folder) / "model.safetensors")
    for name, value in base.items():
        assert name == "score.weight" or value.equal(original[name])

    settings = json.loads((output / "adapter" / "adapter_config.json").read_text())
    assert settings["peft_type"] == "LORA" and settings["modules_to_save"] is None and settings["bias"] == "none"
    assert (settings["r"], settings["lora_alpha"], settings["use_dora"]) == (16, 32, False)
    assert isinstance(settings["target_modules"], list)
    lora = load_file(output / "adapter" / "adapter_model.safetensors")
    assert lora.keys() == trained_weights.keys() - {"base_model.model.score.weight"}
    assert all(LORA_NAME.fullmatch(name) and value.equal(trained_weights[name]) for name, value in lora.items())


def test_as_transformers_it_is_the_merged_model(
    trained: Train, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "plain"
    assert main(["export", str(trained("fp32")), "--output", str(output), "--format", "transformers"]) == 0
    assert "merged" in capsys.readouterr().out and (output / "model.safetensors").exists()


@pytest.mark.parametrize(
    ("setting", "value", "words"),
    [("use_dora", True, "takes no DoRA"), ("r", 513, "up to rank 512, and lora.r is 513")],
)
def test_what_vllm_would_refuse_is_refused(
    setting: str, value: object, words: str, trained: Train, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = Path(shutil.copytree(trained("fp32"), tmp_path / "run"))
    result = json.loads((folder / "result.json").read_text())
    result["settings"]["lora"][setting] = value
    (folder / "result.json").write_text(json.dumps(result))
    assert main(["export", str(folder), "--output", str(tmp_path / "vllm"), "--format", "vllm"]) == 2
    message = capsys.readouterr().err
    assert words in message and "shoal merge" in message and not (tmp_path / "vllm").exists()
