"""What the commands of both packages share: how they read their arguments, and how they end.

Arguments have the form KEY=VALUE, as in Hydra. A value in quotes is taken as it is; without quotes, commas separate several
values, brackets make a list, and ``~`` at the beginning is the home directory. What Hydra cannot read without quotes, such as
``a=b`` or letters with accents, is taken as it is, too.

A mistake in what the user gave is one line on stderr, and exit status 2. A bug shows its traceback, and exit status 1.
"""

from __future__ import annotations

import io
import logging
import os
import re
import sys
from collections.abc import Callable, Sequence
from typing import Any, NoReturn

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import ChoiceSweep, Override, Quote, QuotedString
from hydra.errors import HydraException, OverrideParseException
from omegaconf.errors import ConfigAttributeError, ConfigKeyError, OmegaConfBaseException
from yaml import YAMLError

from eventprop.data import DataError

from .checkpoint import CheckpointError
from .config import ConfigError, check_keys
from .finite import NonFiniteError
from .parallel import wait_for_the_first

MISTAKES = (
    ConfigError, DataError, CheckpointError, NonFiniteError, HydraException, OmegaConfBaseException, YAMLError,
    OSError,
)  # fmt: skip
SHOW_TRACEBACKS = os.environ.get("HYDRA_FULL_ERROR") == "1"  # of mistakes, too; Hydra's own switch


def command(main: Callable[[], object], usage: str | None = None) -> None:
    """Run a command to its end. ``usage`` is for commands that read their arguments by themselves."""
    arguments = sys.argv[1:]
    if usage is not None and (not arguments or {"-h", "--help"} & set(arguments)):
        print(usage.replace("``", "").strip(), file=sys.stdout if arguments else sys.stderr)
        raise SystemExit(0 if arguments else 2)
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # for names that the terminal cannot show
    try:
        main()
        sys.stdout.flush()
    except BrokenPipeError:  # as in ``collect ... | head``
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # for Python's own flush at the exit
        raise SystemExit(141) from None  # as if ended by SIGPIPE
    except Exception as error:
        if SHOW_TRACEBACKS or not is_mistake(error):
            wait_for_the_first()
            raise
        fail(error)


def is_mistake(error: BaseException) -> bool:
    """Whether an error is about what the user gave."""
    return isinstance(error, MISTAKES) or _is_out_of_memory(error)


def _is_out_of_memory(error: BaseException) -> bool:
    """Too much memory is wanted; torch has no class of its own for that of the CPU."""
    told = ("allocate memory", "out of memory", "Storage size calculation overflowed")
    return isinstance(error, MemoryError) or (
        isinstance(error, RuntimeError) and any(text in str(error) for text in told)
    )


def fail(error: BaseException) -> NoReturn:
    """End the process with the message of a mistake."""
    wait_for_the_first()
    print(f"error: {one_line(error)}", file=sys.stderr, flush=True)
    raise SystemExit(2)


def one_line(error: BaseException) -> str:
    """The message of an error, without what Hydra and OmegaConf write for those who debug a configuration."""
    cause, text = error.__cause__, str(error)
    if isinstance(error, OverrideParseException):
        reason = re.sub(r"Error parsing override.*\n", "", text).partition("\n")[0]
        if "NoViableAlt" in reason:
            reason = "its quotes do not match"
        text = (
            f"cannot read {error.override}: {reason}; arguments have the form KEY=VALUE, with quotes around a value that "
            f"begins with a quote or a bracket"
        )
    elif isinstance(error, HydraException) and isinstance(cause, (ConfigAttributeError, ConfigKeyError)):
        text = _unknown_key(cause)
    elif isinstance(error, HydraException) and isinstance(cause, OmegaConfBaseException):
        text += f": {one_line(cause)}"
    elif _is_out_of_memory(error):
        text = f"there is not enough memory: {text}"
    text = re.split(r"\n *(?:Config search path:|object_type=|reference_type=)", text)[0].strip()
    for long, short in (
        (r"\n *full_key: (.*)", r" (\1)"),
        (r"\n\n", "; "),
        (r":\n\t", ": "),
        (r"\n\t", ", "),
        (r"\\'", "'"),
    ):
        text = re.sub(long, short, text)
    return " ".join(text.split()) or type(error).__name__


def _unknown_key(error: OmegaConfBaseException) -> str:
    """In the place of Hydra's advice to add the key, which a check of ours would refuse."""
    group, _, key = str(error.full_key).rpartition(".")
    try:
        check_keys(group, {key: None}, [str(known) for known in error.parent_node or ()], complete=False)
    except ConfigError as unknown:
        return str(unknown)
    return str(error)


def note_in_files(log: logging.Logger, error: BaseException) -> None:
    """Write the message of a mistake to train.log, and not to the screen, where it will be on stderr."""
    record = log.makeRecord(log.name, logging.ERROR, __file__, 0, one_line(error), (), None)
    for handler in logging.getLogger().handlers:
        if isinstance(handler, logging.FileHandler):
            handler.handle(record)


def readable(argument: str) -> str:
    """An argument for Hydra: with quotes around a value that it could not read without."""
    key, equals, value = argument.partition("=")
    if argument.startswith("-") or not equals or value[:1] in ("'", '"', "[", "{"):
        return argument
    try:
        OverridesParser.create().parse_override(argument)
    except HydraException:
        return f"{key}={QuotedString(os.path.expanduser(value), Quote.double).with_quotes()}"
    except ValueError:  # of a function such as range()
        pass
    return argument


def _override(argument: str) -> Override:
    try:
        return OverridesParser.create().parse_override(readable(argument))
    except (HydraException, ValueError) as error:
        raise ConfigError(f"cannot read {argument}: {one_line(error)}") from error


def _text(value: Any, written: str) -> str:
    """A value as text: numbers and the like as they were ``written``."""
    return value.text if isinstance(value, QuotedString) else value if isinstance(value, str) else written


def options(arguments: Sequence[str], allowed: dict[str, Any]) -> dict[str, Any]:
    """The values of command-line arguments KEY=VALUE; ``allowed`` has their defaults, None and ``[]`` for those that must be
    given.

    A default tells the type of a value: a bool, a whole number, several texts for ``[]``, or else text. Keys such as
    ``data.root`` belong to the default ``{}`` of ``data``, and have the types that Hydra gives them.

    Raises:
        ConfigError: if an argument has another form, is unknown, or is missing.
    """
    values = {key: {} if default == {} else default for key, default in allowed.items()}
    for argument in arguments:
        key, equals, text = argument.partition("=")
        if not equals:
            raise ConfigError(
                f"arguments have the form KEY=VALUE with KEY one of {', '.join(allowed)}; got {argument!r}"
            )
        group, dot, inner = key.partition(".")
        if dot and allowed.get(group) == {}:
            override = _override(argument)
            if override.is_sweep_override():
                raise ConfigError(f"{key} must be one value, got {text!r}; put quotes around it")
            values[group][inner] = override.value()
        else:
            check_keys("", {key: text}, list(allowed), complete=False)
            values[key] = _typed(argument, key, text, allowed[key])
    for key, value in values.items():
        if value is None or value in ("", [], [""]):
            raise ConfigError(f"{key} is missing; give it as {key}=VALUE")
    return values


def _typed(argument: str, key: str, text: str, default: Any) -> Any:
    """The value of an ``argument`` that is ``key``=``text``, of the type of its default."""
    if default == {}:
        raise ConfigError(f"{key} is a group; give its keys, as in {key}.root=DIR")
    if isinstance(default, bool):
        if text not in ("true", "false"):
            raise ConfigError(f"{key} must be true or false, got {text!r}")
        return text == "true"
    if isinstance(default, int):
        if not text.isdecimal() or not 0 < int(text) < 2**63:
            raise ConfigError(f"{key} must be a whole number >= 1, got {text!r}")
        return int(text)
    value = _override(argument).value()
    if default != []:
        return _text(value, text)
    several = value.list if isinstance(value, ChoiceSweep) and value.simple_form else value
    return [_text(x, str(x)) for x in several] if isinstance(several, list) else [_text(value, text)]
