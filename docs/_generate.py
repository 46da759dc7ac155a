"""What the site takes from the code: settings, commands, the public API; and equations as MathML.

A page says `{{ settings }}`, `{{ commands }}` or `{{ api }}` on a line of its own; the text is put there in the build.
"""

from __future__ import annotations

import inspect
import re
from typing import Any

import latex2mathml.converter
import typer
from docutils import nodes
from sphinx.application import Sphinx

import das3d
from das3d.cli import app as cli
from das3d.settings import PRESETS, Settings

# Modules with the method itself, whose functions are worth reading beside the equations.
METHOD = (
    "background", "foreground", "sparse", "measurement", "preparation", "window", "recipes", "synthesis", "noise",
    "network", "losses", "batches", "light", "regions", "threshold", "metrics", "scan", "files", "engines",
)  # fmt: skip


def settings_page() -> str:
    """A table a section: name, meaning, default, what other presets have, and limits."""
    lines: list[str] = []
    for name, field in Settings.model_fields.items():
        if isinstance(field.default, (str, int)):
            lines += ["| setting | meaning | default |", "|---|---|---|"] * (not lines)
            lines.append(f"| `{name}` | {cell(field.description)} | `{value_of(field.default)}` |")
    for name, field in Settings.model_fields.items():
        if isinstance(field.default, (str, int)):
            continue
        section = type(field.default)
        presets = [preset for preset, changes in PRESETS.items() if changes.get(name)]
        heads = ["setting", "meaning", "default", *presets, "limits"]
        lines += ["", f"## {name}", "", inspect.cleandoc(section.__doc__ or ""), ""]
        lines += [f"| {' | '.join(heads)} |", "|---" * len(heads) + "|"]
        for key, inner in section.model_fields.items():
            others = [PRESETS[preset][name].get(key, "") for preset in presets]
            shown = [f"`{value_of(value)}`" if value != "" else "" for value in others]
            limits = ", ".join(limit_of(rule) for rule in inner.metadata)
            row = [f"`{key}`", cell(inner.description), f"`{value_of(inner.default)}`", *shown, limits]
            lines.append(f"| {' | '.join(row)} |")
    return "\n".join(lines)


def value_of(value: Any) -> str:
    """A value as a settings file has it."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, (tuple, list)):
        return f"[{', '.join(map(value_of, value))}]"
    return f'"{value}"' if isinstance(value, str) else str(value)


def limit_of(rule: Any) -> str:
    signs = {"ge": "≥", "gt": ">", "le": "≤", "lt": "<", "multiple_of": "multiple of"}
    return ", ".join(f"{sign} {getattr(rule, name)}" for name, sign in signs.items() if hasattr(rule, name))


def cell(text: str | None) -> str:
    return (text or "").replace("|", "\\|")


def commands_page() -> str:
    """Every command with its arguments and options, read off the command line's own definition."""
    group = typer.main.get_command(cli)
    lines: list[str] = []
    for name, command in group.commands.items():  # type: ignore[attr-defined]
        context = command.make_context(name, [], resilient_parsing=True)
        arguments = [shown_name(parameter, context) for parameter in command.params if not is_option(parameter)]
        usage = " ".join(["das3d", name, "[OPTIONS]", *arguments])
        lines += [
            "",
            f"## {name}",
            "",
            command.help or "",
            "",
            "```text",
            usage,
            "```",
            "",
            "| | | default |",
            "|---|---|---|",
        ]
        for parameter in command.params:
            default = parameter.get_default(context, call=False)
            default = getattr(default, "value", default)
            needed = "required" if parameter.required else "" if default in (None, False, ()) else f"`{default}`"
            help_text = cell(getattr(parameter, "help", None))
            lines.append(f"| `{cell(shown_name(parameter, context))}` | {help_text} | {needed} |")
    return "\n".join(lines)


def is_option(parameter: Any) -> bool:
    return bool(parameter.param_type_name == "option")


def shown_name(parameter: Any, context: Any) -> str:
    """As help has it, with the choices there are; that a path is a path is said by its meaning."""
    if not is_option(parameter):
        return parameter.metavar or parameter.name.upper()
    names = parameter.get_help_record(context)[0]
    return re.sub(r" <(?:str|path|int|float|int range|float range|list\[str\])>", "", names)


def api_page() -> str:
    """Directives for everything that `import das3d` gives, then for the modules of the method."""
    lines = ["```{eval-rst}"]
    for name in das3d.__all__:
        value = getattr(das3d, name)
        exception = inspect.isclass(value) and issubclass(value, Exception)
        kind = "exception" if exception else "class" if inspect.isclass(value) else "function"
        home = f"{value.__module__}.{value.__qualname__}"
        options = ["   :members:"] * (kind == "class")
        options = [] if name == "Settings" else options  # which have a page of their own
        lines += [f".. auto{kind}:: {home}", *options, ""]
    lines += ["```", "", "## The method, module by module", ""]
    for module in METHOD:
        above = [name for name in das3d.__all__ if getattr(das3d, name).__module__ == f"das3d.{module}"]
        options = ["   :members:", f"   :exclude-members: {', '.join(above)}"]
        lines += [f"### {module}", "", "```{eval-rst}", f".. automodule:: das3d.{module}", *options, "```", ""]
    return "\n".join(lines)


GENERATED = {"settings": settings_page, "commands": commands_page, "api": api_page}


def fill_in(app: Sphinx, docname: str, content: list[str]) -> None:
    for name, make in GENERATED.items():
        mark = f"{{{{ {name} }}}}"
        if mark in content[0]:
            content[0] = content[0].replace(mark, make())


def as_mathml(display: str) -> Any:
    def visit(translator: Any, node: nodes.Node) -> None:
        text, _, number = node.astext().partition(r"\tag{")
        mathml = latex2mathml.converter.convert(text.strip(), display=display)
        if display == "block":
            label = f"<span>({number.rstrip('}')})</span>" if number else ""
            mathml = f'<div class="equation">{mathml}{label}</div>'
        translator.body.append(mathml)
        raise nodes.SkipNode

    return visit


def setup(app: Sphinx) -> dict[str, bool]:
    app.connect("source-read", fill_in)
    app.add_html_math_renderer("mathml", (as_mathml("inline"), None), (as_mathml("block"), None))
    return {"parallel_read_safe": True, "parallel_write_safe": True}
