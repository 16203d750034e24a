"""The verb completion: verbs, options and config keys for the Tab key of a shell, from the parsers themselves."""

import sys
from collections.abc import Sequence

from nova3d import cli
from nova3d.cli import common
from nova3d.utils import resources

BASH = """# bash: put  eval "$(nova3d completion bash)"  into ~/.bashrc
_nova3d() {{
    local current=${{COMP_WORDS[COMP_CWORD]}} previous=${{COMP_WORDS[COMP_CWORD-1]}} words=
    COMPREPLY=()
    if [[ $current == "=" ]]; then previous+="=" current=  # "=" is a word of its own
    elif [[ $previous == "=" ]]; then previous="${{COMP_WORDS[COMP_CWORD-2]}}="; fi
    if (( COMP_CWORD == 1 )); then
        words="{verbs}"
    else
        case "${{COMP_WORDS[1]}} $previous" in
{values}
        *=) return ;;  # files
        *)
            case "${{COMP_WORDS[1]}}" in
{words}
            esac ;;
        esac
    fi
    COMPREPLY=($(compgen -W "$words" -- "$current"))
    if [[ ${{#COMPREPLY[@]}} == 1 && ${{COMPREPLY[0]}} == *= ]]; then compopt -o nospace 2>/dev/null; fi
}}
complete -o default -F _nova3d nova3d
"""
ZSH = """# zsh: put  eval "$(nova3d completion zsh)"  into ~/.zshrc
autoload -U +X compinit && compinit
autoload -U +X bashcompinit && bashcompinit
"""


def completion_parser() -> common.Parser:
    """The arguments of `completion`."""
    arguments = common.parser(
        "Print a shell script that completes verbs, options and config keys.",
        'eval "$(nova3d completion bash)"',
    )
    arguments.add_argument("shell", choices=("bash", "zsh", "fish"))
    return arguments


def completion(argv: Sequence[str] | None = None) -> None:
    """Print a shell script that completes verbs, options and config keys."""
    shell = completion_parser().parse(argv).shell
    sys.stdout.write({"bash": bash, "zsh": lambda: ZSH + bash(), "fish": fish}[shell]())


def words(verb: str) -> list[str]:
    """The words that may follow a verb: its choices, its options, and its config keys with a "=" behind each."""
    parser = cli.parser_of(verb)
    choices = [str(choice) for action in parser._get_positional_actions() for choice in action.choices or ()]
    if verb == "render":
        from nova3d.cli.render import STEPS

        choices += STEPS
    return [*choices, *parser.option_strings(), *(f"{key}=" for key in parser.config_keys())]


def values(verb: str) -> dict[str, list[str]]:
    """Option of a verb, or config key with a "=" -> the values that it takes, where they are a fixed set."""
    parser = cli.parser_of(verb)
    shipped = {
        "--config": resources.names("config", parser.stage),
        "--preset": resources.names("config", "preset"),
        "--protocol": resources.names("protocol"),
        "--model": resources.names("model"),
    }
    known = {text: choices or shipped.get(text, []) for text, choices in parser.option_strings().items()}
    known |= {f"{key}=": choices for key, choices in parser.key_choices().items()}
    return {text: list(found) for text, found in known.items() if found}


def bash() -> str:
    """The function for bash, and its registration."""
    pairs = [(verb, option, found) for verb in cli.VERBS for option, found in values(verb).items()]
    patterns = [
        (f'"{verb} {text}"' + (f' | "{verb} {text}="' if text.startswith("--") else ""), found)
        for verb, text, found in pairs
    ]
    return BASH.format(
        verbs=" ".join(cli.VERBS),
        values="\n".join(f'        {pattern}) words="{" ".join(found)}" ;;' for pattern, found in patterns),
        words="\n".join(f'            {verb}) words="{" ".join(words(verb))}" ;;' for verb in cli.VERBS),
    )


def fish() -> str:
    """The commands for fish."""
    lines = [
        "# fish: nova3d completion fish > ~/.config/fish/completions/nova3d.fish",
        f'complete -c nova3d -n __fish_use_subcommand -f -a "{" ".join(cli.VERBS)}"',
    ]
    for verb in cli.VERBS:
        begin, found = f'complete -c nova3d -n "__fish_seen_subcommand_from {verb}"', values(verb)
        lines.append(f'{begin} -a "{" ".join(word for word in words(verb) if not word.startswith("-"))}"')
        if pairs := [text + value for text, known in found.items() if text.endswith("=") for value in known]:
            lines.append(f'{begin} -a "{" ".join(pairs)}"')
        for text, takes_value in cli.parser_of(verb).options_with_values().items():
            # -r: a value follows, a file by default. -x: no file.
            kind = f'-x -a "{" ".join(found[text])}"' if text in found else "-r" if takes_value else ""
            lines.append(f"{begin} {'-l' if text.startswith('--') else '-s'} {text.lstrip('-')} {kind}".rstrip())
    return "\n".join(lines) + "\n"
