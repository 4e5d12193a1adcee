"""The one boundary for settings: YAML files, `--set key=value` and flags become a JobSpec, or a UserError.

Unknown keys are refused with the nearest known name; each message holds the file and the path of the key.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any, TypeVar, get_type_hints

import yaml
from pydantic import TypeAdapter, ValidationError

from training.errors import UserError, nearest
from training.redact import redact_values
from training.spec import JobSpec

T = TypeVar("T")
NestedDict = dict[str, Any]


def read_text(path: Path, what: str) -> str:
    """Return the UTF-8 text of `path`; `what` names the file in messages ("job file", "study file")."""
    try:
        return path.read_bytes().decode("utf-8-sig")
    except FileNotFoundError:
        raise UserError(f"{what} {path} does not exist. Check the path.") from None
    except IsADirectoryError:
        raise UserError(f"{what} {path} is a folder. Give the file.") from None
    except UnicodeDecodeError as error:
        raise UserError(
            f"{what} {path} is not UTF-8: byte {error.object[error.start]:#04x} at offset {error.start}. "
            f"Convert it, e.g. iconv -f LATIN1 -t UTF-8."
        ) from None
    except (OSError, ValueError) as error:  # no rights, a name too long, a NUL in it
        raise UserError(f"{what} {path} cannot be read: {error}. Check the path.") from None


MAX_CHARACTERS = 1 << 22
"""That aliases may add to a YAML file. A few lines of aliases to aliases stand for more than any memory holds."""


class _StudyLoader(yaml.SafeLoader):
    """SafeLoader that refuses a key given twice, which PyYAML lets the last one win, and aliases that explode."""

    def get_single_node(self) -> yaml.Node | None:
        node: yaml.Node | None = super().get_single_node()
        if node is not None and _characters(node, {}) > MAX_CHARACTERS + self.index:
            problem = f"written out, its aliases (*name) take more than {MAX_CHARACTERS >> 20} MiB"
            raise yaml.MarkedYAMLError(problem=problem, problem_mark=node.start_mark)
        return node

    def compose_mapping_node(self, anchor: Any) -> yaml.MappingNode:
        node: yaml.MappingNode = super().compose_mapping_node(anchor)
        seen: set[str] = set()
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode):
                raise yaml.MarkedYAMLError(problem="a key is no plain word", problem_mark=key.start_mark)
            if key.value in seen:
                raise yaml.MarkedYAMLError(problem=f"key {key.value!r} is given twice", problem_mark=key.start_mark)
            seen.add(key.value)
        return node


def _characters(node: yaml.Node, known: dict[int, int | None]) -> int:
    """Return the characters a node stands for; `known` holds those of the nodes with parts, None while counted."""
    if isinstance(node, yaml.ScalarNode):
        return 1 + len(node.value)
    if id(node) not in known:
        known[id(node)] = None
        parts = itertools.chain.from_iterable(node.value) if isinstance(node, yaml.MappingNode) else node.value
        known[id(node)] = 1 + sum(_characters(part, known) for part in parts)
    size = known[id(node)]
    if size is None:
        raise yaml.MarkedYAMLError(problem="an alias stands within what it names", problem_mark=node.start_mark)
    return size


def read_yaml(path: Path, what: str) -> NestedDict:
    """Return the mapping a YAML file holds."""
    text = read_text(path, what)
    try:
        content = yaml.load(text, Loader=_StudyLoader)
    except yaml.MarkedYAMLError as error:
        where = f" line {error.problem_mark.line + 1}" if error.problem_mark else ""
        raise UserError(f"{what} {path}{where}: {error.problem}. Mend the YAML there.") from None
    except (yaml.YAMLError, RecursionError) as error:
        raise UserError(f"{what} {path} is not YAML: {error}.") from None
    if not isinstance(content, dict):
        raise UserError(f"{what} {path} holds no settings. It must be a mapping such as `model: {{...}}`.")
    return content


def parse_assignment(text: str) -> tuple[str, Any]:
    """Split `lora.r=8` into the dotted key and the YAML value."""
    key, sign, value = text.partition("=")
    if not sign or not key.strip():
        raise UserError(f"--set {text!r} is no assignment. Write --set lora.r=8.")
    try:
        return key.strip(), yaml.safe_load(value)
    except yaml.YAMLError:
        raise UserError(f"--set {text!r}: {value!r} is no YAML value. Quote it.") from None


def set_key(content: NestedDict, dotted_key: str, value: Any) -> NestedDict:
    """Return `content` with one dotted key set, all else as it was."""
    head, _, rest = dotted_key.partition(".")
    if not rest:
        return {**content, head: value}
    inner = content.get(head)
    return {**content, head: set_key(inner if isinstance(inner, dict) else {}, rest, value)}


def deep_merge(base: NestedDict, override: Mapping[str, Any]) -> NestedDict:
    """Return `base` with the values of `override` laid over it, mapping by mapping."""
    merged = dict(base)
    for key, value in override.items():
        inner = merged.get(key)
        merged[key] = deep_merge(inner, value) if isinstance(inner, dict) and isinstance(value, Mapping) else value
    return merged


def known_keys(cls: Any, path: tuple[str, ...] = ()) -> list[str]:
    """Return the field names of the dataclass `path` leads to within `cls`."""
    for part in path:
        if not is_dataclass(cls):
            return []
        cls = get_type_hints(cls).get(part)
    return [item.name for item in fields(cls)] if cls is not None and is_dataclass(cls) else []


def all_dotted_keys(cls: Any, prefix: str = "") -> list[str]:
    """Return each setting of `cls` as a dotted key, sections opened."""
    keys = []
    for name, hint in get_type_hints(cls).items():
        if name.startswith("__"):
            continue
        keys += all_dotted_keys(hint, f"{prefix}{name}.") if is_dataclass(hint) else [f"{prefix}{name}"]
    return keys


def _explain(cls: Any, error: Mapping[str, Any], source: str) -> str:
    """Turn one pydantic error into our words."""
    # Without what pydantic calls the members of a union: deepspeed.str, deepspeed.dict[str,any].
    is_key = error["type"] in ("extra_forbidden", "unexpected_keyword_argument", "missing", "missing_argument")
    path = tuple(str(part) for part in error["loc"] if is_key or not _is_member(part))
    key = ".".join(path)
    if error["type"] in ("extra_forbidden", "unexpected_keyword_argument"):
        hint = nearest(path[-1], known_keys(cls, path[:-1]))
        homes = [dotted for dotted in all_dotted_keys(cls) if dotted.split(".")[-1] == path[-1]]
        if homes:
            hint = f"; it belongs at {homes[0]!r}"
        return f"{source}: unknown key {key!r}{hint or '. Remove it.'}"
    if error["type"] in ("missing", "missing_argument"):
        return f"{source}: key {key!r} is missing. Add it."
    own = error.get("ctx", {}).get("error")
    if isinstance(own, UserError):
        return f"{source}: {own}"
    mend = " YAML reads an unquoted off, no, on or yes so: quote it." if _is_unquoted_word(error) else ""
    return f"{source}: {key} is {error['input']!r}. {error['msg'].removeprefix('Value error, ')}.{mend}"


def _is_member(part: Any) -> bool:
    """Whether this is what pydantic calls a member of a union in an error's place."""
    return part == "str" or str(part).startswith(("dict[", "list["))


def _is_unquoted_word(error: Mapping[str, Any]) -> bool:
    return error["type"] == "string_type" and isinstance(error["input"], bool)


def _joined(errors: Sequence[Any]) -> list[dict[str, Any]]:
    """Return pydantic's errors, those of a union's members as one: 5 is no string, and no dictionary either."""
    joined: dict[str, dict[str, Any]] = {}
    # A mapping with a wrong value in it is meant to be the union's mapping: that it is no string helps nobody.
    opened = {
        str(error["loc"][:at]) for error in errors for at, part in enumerate(error["loc"][:-1]) if _is_member(part)
    }
    for error in errors:
        is_member = error["type"].endswith("_type") and _is_member(error["loc"][-1])
        place = str(error["loc"][:-1] if is_member else error["loc"])
        if is_member and place in opened:
            continue
        if is_member and place in joined:
            joined[place]["msg"] += f" or {error['msg'].removeprefix('Input should be ')}"
        else:
            joined[place] = dict(error)
    return list(joined.values())


def _refuse_secrets(content: NestedDict, source: str) -> None:
    """Raise UserError for a setting that holds a token or password: job.yaml and the reports would show it."""
    before: Any = content
    after: Any = redact_values(content)
    keys: list[str] = []
    while before != after:
        items = before.items() if isinstance(before, dict) else enumerate(before) if isinstance(before, list) else []
        differs = next((key for key, value in items if value is not after[key] and value != after[key]), None)
        if differs is None:
            raise UserError(
                f"{source}: {'.'.join(keys)} holds a secret, which job.yaml and the reports would show. Take it out; "
                "the hub's token is read from $HF_TOKEN or from where `hf auth login` puts it."
            )
        keys.append(str(differs))
        before, after = before[differs], after[differs]


def build(cls: type[T], content: Mapping[str, Any], source: str) -> T:
    """Validate plain values into the dataclass `cls`; `source` names the file or "flags" in messages."""
    _refuse_secrets(dict(content), source)
    try:
        return TypeAdapter(cls).validate_python(dict(content))
    except UserError as error:
        raise UserError(f"{source}: {error}") from None
    except ValidationError as error:
        lines = [_explain(cls, item, source) for item in _joined(error.errors())]
        raise UserError("\n".join(dict.fromkeys(lines))) from None


def load_job(path: Path, assignments: list[str] | None = None, overrides: Mapping[str, Any] | None = None) -> JobSpec:
    """Read a job file, apply `--set` assignments and then `overrides`."""
    content = read_yaml(path, "job file")
    for assignment in assignments or []:
        content = set_key(content, *parse_assignment(assignment))
    return build(JobSpec, deep_merge(content, overrides or {}), str(path))
