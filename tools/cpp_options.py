"""The options of the C++ front, read from its headers; prints them as Markdown tables: python tools/cpp_options.py

Each is named once, in a list such as TORCH_SSAM_NOISE_OPTIONS with X(type, name, default, range, "text") for each
(csrc/api/include/torch_ssam/option.h). docs/conf.py shows the tables, tests/python/test_cpp_options.py holds the lists to
Python's.
"""

import ast
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

HEADERS = Path(__file__).resolve().parent.parent / "csrc" / "api" / "include" / "torch_ssam"
HEADERS_OF_UPDATES = {"SSAM": "ssam.h", "SSAMAdamW": "adamw.h"}
VALUES = {"true": True, "false": False, "std::nullopt": None}


class Option(NamedTuple):
    """One line of a list."""

    type: str
    name: str
    default: Any
    range: str  # what the range is called,
    bounds: list[Any]  # and what it is given
    text: str


def split(arguments: str) -> list[str]:
    """The arguments of a macro, at commas outside of strings and parentheses."""
    parts, depth, quoted = [""], 0, False
    for before, character in zip(" " + arguments, arguments, strict=False):
        quoted ^= character == '"' and before != "\\"
        depth += 0 if quoted else {"(": 1, ")": -1}.get(character, 0)
        if character == "," and depth == 0 and not quoted:
            parts.append("")
        else:
            parts[-1] += character
    return [part.strip() for part in parts]


def value(text: str) -> Any:
    """A literal of C++; of a pair, such as Betas(0.9, 0.999), what it holds."""
    return VALUES[text] if text in VALUES else ast.literal_eval(text.removeprefix("Betas"))


def read(header: str) -> dict[str, list[Option]]:
    """The lists of a header, by their names in lower case, such as "noise"."""
    lists = {}
    source = (HEADERS / header).read_text()
    for name, body in re.findall(r"#define TORCH_SSAM_(\w+)_OPTIONS\(X\)((?:.*\\\n)*.*\n)", source):
        lists[name.lower()] = found = []
        for line in re.findall(r"X\((.*?)\)(?= X\(|$)", " ".join(body.replace("\\\n", " ").split())):
            type_, option, default, limits, text = split(line)
            kind, bounds = re.fullmatch(r"(\w+)\((.*)\)", limits).groups()
            bounds = [value(bound) for bound in split(bounds) if bound]
            found.append(Option(type_, option, value(default), kind, bounds, value(text)))
    return lists


def lists() -> dict[str, list[Option]]:
    """Every list."""
    return {
        name: found
        for header in ("noise/options.h", "optim/options.h", *HEADERS_OF_UPDATES.values())
        for name, found in read(header).items()
    }


def in_words(option: Option) -> str:
    """Its range."""
    bounds = [f'`"{bound}"`' if isinstance(bound, str) else f"`{bound:.12g}`" for bound in option.bounds]
    words = {
        "any": "",
        "finite": "finite",
        "one_of": ", ".join(bounds),
        "at_least": "at least {}",
        "above": "above {}",
        "between": "{} to {}",
        "from_up_to": "{} up to, without, {}",
    }[option.range]
    return words.format(*bounds)


def rows(options: list[Option]) -> Iterator[str]:
    """Options as the rows of a table."""
    for option in options:
        default = "none" if option.default is None else str(option.default)
        default = default.lower() if option.type == "bool" else default
        default = f'"{default}"' if option.type == "std::string" else default
        yield f"| `{option.name}` | `{option.type}` | `{default}` | {in_words(option)} | {option.text} |"


def tables() -> str:
    """All options as Markdown: those of each update, then those that all optimizers have."""
    head = "| Option | Type | Default | Range | |\n|---|---|---|---|---|"
    updates = {name: read(header) for name, header in HEADERS_OF_UPDATES.items()}
    of_updates = {name for found in updates.values() for name in found}
    parts = []
    for name, found in updates.items():
        parts += [
            f"Of the update of `{name}`:",
            "",
            head,
            *(row for own in found.values() for row in rows(own)),
            "",
        ]
    shared = [row for name, own in lists().items() if name not in of_updates for row in rows(own)]
    return "\n".join([*parts, "Of both:", "", head, *shared]) + "\n"


if __name__ == "__main__":
    print(tables(), end="")
