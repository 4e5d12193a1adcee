"""Files, names and messages that somebody else made neither run code, nor leave the study's folder, nor explode."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from near_inbox import recorder_near

from launcher.cli import main as shoal
from launcher.inbox import Inbox
from launcher.study import load_study
from training.corpus.load import load_corpus
from training.errors import ShoalError, UserError
from training.spec import DataSpec

CHECKOUT = Path(__file__).resolve().parents[2]
SOURCES = sorted([*(CHECKOUT / "training").rglob("*.py"), *(CHECKOUT / "launcher").rglob("*.py")])


# What a rank sends


@pytest.fixture
def inbox(tmp_path: Path) -> Inbox:
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside/file").write_text("untouched")
    (tmp_path / "study/jobs/other").mkdir(parents=True)
    (tmp_path / "study/jobs/other/file").write_text("untouched")
    (tmp_path / "study/jobs/job").mkdir()
    (tmp_path / "study/jobs/job/link").symlink_to(tmp_path / "outside")
    return Inbox(str(tmp_path / "study/jobs"))


@pytest.mark.parametrize("way", ["../other", "../../../outside", "a/../../other", "{outside}", "link"])
@pytest.mark.parametrize("call", ["begin", "chunk", "file", "commit", "remove", "list_files", "read"])
def test_no_path_of_a_rank_leaves_its_jobs_folder(tmp_path: Path, inbox: Inbox, call: str, way: str) -> None:
    path = way.format(outside=tmp_path / "outside") + "/file"
    calls = {
        "begin": lambda: inbox.begin("job", path),
        "chunk": lambda: inbox.chunk("job", path, "", b"changed"),
        "file": lambda: inbox.chunk("job", "adapter", f"../../{path}" if way[0] == "." else path, b"changed"),
        "commit": lambda: inbox.commit("job", path),
        "remove": lambda: inbox.remove("job", path),
        "list_files": lambda: inbox.list_files("job", path),
        "read": lambda: inbox.read("job", path, 0),
    }
    if (call, way) == ("file", "link"):
        pytest.skip("what is being sent lies in a folder of its own, where that link is not")
    with pytest.raises(ShoalError, match="not in its folder"):
        calls[call]()
    for kept in (tmp_path / "outside/file", tmp_path / "study/jobs/other/file"):
        assert kept.read_text() == "untouched"


@pytest.mark.parametrize("job", ["..", "../../outside", "other/..", "", "."])
def test_no_job_of_a_rank_is_another_folder(tmp_path: Path, inbox: Inbox, job: str) -> None:
    with pytest.raises(ShoalError, match="not in its folder"):
        inbox.event(job, {"kind": "log"})
    with pytest.raises(ShoalError, match="not in its folder"):
        inbox.remove(job, "file")


def test_what_a_rank_links_to_is_not_sent(tmp_path: Path, inbox: Inbox, monkeypatch: pytest.MonkeyPatch) -> None:
    recorder = recorder_near(inbox, "job", monkeypatch)
    adapter = tmp_path / "work/adapter"
    adapter.mkdir(parents=True)
    (adapter / "weights").write_text("w")
    recorder.save("adapter", adapter)
    assert (tmp_path / "study/jobs/job/adapter/weights").read_text() == "w"
    (adapter / "key").symlink_to(tmp_path / "outside/file")
    for sent in (adapter, adapter / "key"):
        with pytest.raises(ShoalError, match="symbolic link"):
            recorder.save("again", sent)
    assert not (tmp_path / "study/jobs/job/again").exists()


@pytest.mark.parametrize("name", ["..", "../up", "/abs", "a/b", ".hidden", "", "a\0b", "a\n", "~"])
def test_names_in_a_study_stay_in_its_folder(tmp_path: Path, name: str) -> None:
    path = tmp_path / "some.yaml"
    content = {"data": {"dataset_name": "builtin:docstrings"}}
    for change in ({"name": name}, {"sweep": {"jobs": [{"name": name}, {"name": "good"}]}}):
        path.write_text(yaml.safe_dump({**content, **change}))
        if "sweep" in change and not name:
            continue  # a job without a name is given one
        assert shoal(["plan", str(path), "--cards", "8"]) == 2
    (tmp_path / "study.yaml").write_text(yaml.safe_dump({"name": "some", "jobs": [{"name": name}]}))
    assert shoal(["report", str(tmp_path)]) == 2


# YAML, and code that comes with data

BOMB = "a: &a [x, x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{new}: &{new} [{', '.join([f'*{old}'] * 10)}]\n" for old, new in zip("abcdefghi", "bcdefghij", strict=True)
)
MERGES = "a: &a {k: v}\n" + "".join(
    f"{new}: &{new} {{<<: [{', '.join([f'*{old}'] * 10)}]}}\n"
    for old, new in zip("abcdefghi", "bcdefghij", strict=True)
)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("name: !!python/object/apply:os.system ['touch {mark}']\n", "could not determine a constructor"),
        ("name: !!python/object/new:os.system ['touch {mark}']\n", "could not determine a constructor"),
        ("name: !!python/name:os.system\n", "could not determine a constructor"),
        (BOMB, "its aliases (*name) take more than 4 MiB"),
        (MERGES, "its aliases (*name) take more than 4 MiB"),
        ("deepspeed: &a {b: *a}\n", "an alias stands within what it names"),
        ("name: " + "[" * 1_000, "is not YAML"),
    ],
)
def test_a_yaml_file_neither_runs_code_nor_explodes(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], text: str, words: str
) -> None:
    path, mark = tmp_path / "hostile.yaml", tmp_path / "mark"
    path.write_text(text.replace("{mark}", str(mark)))
    assert shoal(["run", str(path)]) == 2
    message = capsys.readouterr().err
    assert words in message and "hostile.yaml" in message and "Traceback" not in message and len(message) < 500
    assert not mark.exists()


def test_ordinary_aliases_work_and_so_does_a_long_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("training.parse.MAX_CHARACTERS", 1000)
    path = tmp_path / "some.yaml"
    jobs = "".join(f"  - {{name: j{index}, lora: *small}}\n" for index in range(100))
    path.write_text(f"lora: &small {{r: 4}}\ndata: {{dataset_name: {'x' * 5000}}}\nsweep:\n  jobs:\n{jobs}")
    assert load_study(path).sweep.jobs[99] == {"name": "j99", "lora": {"r": 4}}


def calls(path: Path) -> Iterator[tuple[str, ast.Call]]:
    """Yield each call in a file with the dotted name of what is called."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Call):
            yield ast.unparse(node.func), node


FORBIDDEN_MODULES = {"pickle", "cPickle", "_pickle", "joblib", "dill", "cloudpickle", "shelve", "marshal"}
FORBIDDEN_CALLS = {
    "eval", "exec", "compile", "torch.load", "yaml.unsafe_load", "yaml.full_load", "yaml.load_all", "os.system",
    "pandas.read_pickle", "pd.read_pickle",
}  # fmt: skip


def dangers(path: Path) -> list[str]:
    """Return what a file does that could run code which somebody else wrote."""
    found = []
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found += [alias.name for alias in node.names if alias.name.split(".")[0] in FORBIDDEN_MODULES]
        elif isinstance(node, ast.ImportFrom):
            named = [f"{node.module}.{alias.name}" for alias in node.names]
            found += [name for name in named if name.split(".")[0] in FORBIDDEN_MODULES or name in FORBIDDEN_CALLS]
    for name, call in calls(path):
        options = {item.arg: ast.unparse(item.value) for item in call.keywords}
        if name in FORBIDDEN_CALLS or options.get("allow_pickle", "False") != "False":
            found.append(ast.unparse(call))
        if name == "yaml.load" and options.get("Loader") != "_StudyLoader":
            found.append(ast.unparse(call))
        if options.get("shell", "False") != "False" or options.get("trust_remote_code") == "True":
            found.append(ast.unparse(call))
    return found


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: path.relative_to(CHECKOUT).as_posix())
def test_nothing_is_unpickled_and_no_text_is_run(path: Path) -> None:
    # The one place that names torch.load tells the user how to convert a checkpoint; it is text there. The baseline
    # is pickled to be weighed, and never read.
    text = path.read_text(encoding="utf-8")
    weighed = path.name == "baseline.py" and set(re.findall(r"pickle\.\w+", text)) == {
        "pickle.dump",
        "pickle.HIGHEST_PROTOCOL",
    }
    assert dangers(path) == (["pickle"] if weighed else [])


def test_the_check_sees_each_danger(tmp_path: Path) -> None:
    lines = [
        "import pickle", "from joblib import load", "import torch; torch.load(f, weights_only=True)",
        "from torch import load", "np.load(f, allow_pickle=True)", "yaml.load(f, Loader=yaml.Loader)", "eval(x)",
        "subprocess.run(x, shell=True)", "AutoModel.from_pretrained(x, trust_remote_code=True)",
    ]  # fmt: skip
    for line in lines:
        path = tmp_path / "some.py"
        path.write_text(line)
        assert dangers(path), line
    assert issubclass(__import__("training.parse").parse._StudyLoader, yaml.SafeLoader)


# Data


def fault(path: Path) -> str:
    with pytest.raises(UserError) as caught:
        load_corpus(DataSpec(train_file=str(path)))
    assert path.name in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("t.jsonl", b'{"text": "a", "label": ' + b"1" * 5000 + b"}\n", "line 1: not JSON"),
        ("t.jsonl", b'{"text": ' + b"[" * 100_000 + b"\n", "line 1: not JSON"),
        ("t.json", b"[" * 100_000, "not JSON"),
        ("t.jsonl", b'{"text": "a\0b", "label": 0}\n', "line 1: not JSON"),
        ("t.jsonl", b'{"text": "a", "label": 1e999}\n{"text": "b", "label": 1}\n', "inf"),
        ("t.csv", b",".join(b"column%d" % index for index in range(500)) + b"\n" + b"1," * 499 + b"1\n",
         "has no column 'label'"),
    ],
    ids=["digits", "deep line", "deep file", "NUL", "infinite", "columns"],
)  # fmt: skip
def test_hostile_data_gets_a_short_answer(tmp_path: Path, name: str, content: bytes, words: str) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    message = fault(path)
    assert words in message and len(message) < 1500


def test_a_field_longer_than_any_text_is_named_by_its_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("training.corpus.files.MAX_FIELD_CHARACTERS", 1000)
    (tmp_path / "t.csv").write_text(f"text,label\na,0\n{'x' * 1001},0\n")
    assert "line 3: field larger than field limit" in fault(tmp_path / "t.csv")


@pytest.mark.parametrize(
    "metadata",
    [
        b"{", b"[]", b'{"info": 7}', b"[" * 100_000, b"\xff",
        b'{"info": {"features": {"label": {"_type": "ClassLabel", "names": 3}}}}',
    ],
    ids=["cut", "list", "number", "deep", "bytes", "names"],
)  # fmt: skip
def test_a_schema_that_lies_about_its_classes_is_no_schema(tmp_path: Path, metadata: bytes) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    table = pa.table({"text": list("abcdef"), "label": list("xyxyxy")}).replace_schema_metadata(
        {b"huggingface": metadata}
    )
    pq.write_table(table, tmp_path / "t.parquet")
    assert load_corpus(DataSpec(train_file=str(tmp_path / "t.parquet"))).label_names == ["x", "y"]
