"""`matriarch completion`: the script that teaches a shell our commands and options."""

import click
from click.shell_completion import get_completion_class


@click.command()
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
def completion(shell: str) -> None:
    """Print the completion script for SHELL; use it as `eval "$(matriarch completion bash)"`."""
    from api.cli.main import cli

    found = get_completion_class(shell)
    if found is not None:
        click.echo(found(cli, {}, "matriarch", "_MATRIARCH_COMPLETE").source())
