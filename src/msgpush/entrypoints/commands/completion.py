"""`msgpush completion`: what makes a shell complete the command's words."""

import click
from click.shell_completion import get_completion_class

SHELLS = ("bash", "zsh", "fish")


@click.command(
    epilog="""\
\b
Example, for ~/.bashrc (~/.zshrc alike):
  eval "$(msgpush completion bash)"
\b
And for fish:
  msgpush completion fish > ~/.config/fish/completions/msgpush.fish
"""
)
@click.argument("shell", type=click.Choice(SHELLS))
@click.pass_context
def completion(ctx: click.Context, shell: str) -> None:
    """Print the completion script of a shell."""
    root = ctx.find_root()
    found = get_completion_class(shell)
    assert found is not None
    script = found(root.command, {}, "msgpush", "_MSGPUSH_COMPLETE")
    # Not click's own `source`: for bash that starts a bash, to see how old it is.
    click.echo(script.source_template % script.source_vars())
