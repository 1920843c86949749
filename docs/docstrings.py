"""Docstrings as Markdown, for mkdocstrings: what is said of each argument as a list, examples as code."""

import re
import textwrap

import griffe


class Docstrings(griffe.Extension):
    def on_instance(self, *, obj: griffe.Object, **_) -> None:
        if obj.docstring:
            obj.docstring.value = "\n\n".join(map(_block, obj.docstring.value.split("\n\n")))


def _block(text: str) -> str:
    if text.lstrip().startswith(">>> "):
        return f"```pycon\n{textwrap.dedent(text)}\n```"
    if re.match(r"\*{0,2}\w+: ", text):
        return re.sub(r"(?m)^(\*{0,2}\w+): ", r"- `\1`: ", text)
    return text
