"""How `--help` reads: options in sections, and the summary of every command in full, at any width."""

import click

# Section → the parameters that it shows, in the order in which a command declares them.
SECTIONS: dict[str, tuple[str, ...]] = {
    "Prompt and answer": (
        "prompts", "prompt_file", "raw", "system", "messages", "template_args", "thinking", "max_new_tokens", "temperature",
        "top_k", "top_p", "min_p", "repetition_penalty", "seed", "stop",
    ),
    "Measurement": ("text", "window", "tokens", "against", "learn"),
    "Model": ("model", "revision", "plan", "cache", "out"),
    "Rig": ("gpus", "cpu", "disk", "max_memory", "rig", "host", "virtual"),
    "Request": ("context", "batch", "prompt_tokens", "new_tokens"),
    "Storage": ("weights", "head", "skip", "kv"),
    "Arithmetic": ("mode", "threshold", "threads", "kernels"),
    "Questions": ("solve", "what_if", "target", "compare"),
    "Output": ("as_json", "svg", "programs", "verbose", "quiet", "debug", "help", "version"),
}  # fmt: skip
REST = "Other"
FEW = 12  # options that are read at a glance need no sections


class Command(click.Command):
    """A click command whose help shows many options in sections."""

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        helps = ctx.help_option_names  # click names that parameter in its own way
        records = [
            ("help" if set(param.opts) & set(helps) else str(param.name), param.get_help_record(ctx))
            for param in self.get_params(ctx)
        ]
        shown = [(name, record) for name, record in records if record is not None]
        if len(shown) <= FEW:
            super().format_options(ctx, formatter)
            return
        width = max(len(flags) for _, (flags, _) in shown)  # so that the sections line up
        rows: dict[str, list[tuple[str, str]]] = {}
        for name, (flags, help) in shown:
            rows.setdefault(section(name), []).append((flags.ljust(width), help))
        for title in (*SECTIONS, REST):
            if title in rows:
                with formatter.section(title):
                    formatter.write_dl(rows[title])


def section(name: str) -> str:
    """The section of a parameter."""
    return next((title for title, names in SECTIONS.items() if name in names), REST)


class Commands(click.Group):
    """A click group that lists its commands with whole summaries: the first paragraph of each help, wrapped, never cut."""

    command_class = Command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        rows = []
        for name in self.list_commands(ctx):
            command = self.get_command(ctx, name)
            if command is not None and not command.hidden:
                rows.append((name, summary(command)))
        if rows:
            with formatter.section("Commands"):
                formatter.write_dl(rows)


def summary(command: click.Command) -> str:
    """The first paragraph of a command's help, on one line."""
    return " ".join((command.help or "").strip().split("\n\n")[0].split())
