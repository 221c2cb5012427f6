"""The options that say how a file is read."""

from nbprop.cli.values import delimiter, on_missing, whole_number
from nbprop.io.csv_files import MISSING


def add_data_arguments(command, if_missing):
    """The options that determine how a file is read; what was inferred is reported for every file."""
    group = command.add_argument_group("how the file is read")
    which = group.add_mutually_exclusive_group()
    which.add_argument(
        "--target", action="append", default=[], metavar="COLUMN", help="a target column by name or number (from 1)"
    )
    which.add_argument("--targets", type=whole_number, metavar="N", help="the last N columns are the target")
    group.add_argument(
        "--drop", action="append", default=[], metavar="COLUMN", help="leave a column out, by name or number"
    )
    group.add_argument(
        "--category",
        action="append",
        default=[],
        metavar="COLUMN",
        help="take a column's values as categories although they are numbers, or many",
    )
    group.add_argument("--decimal", choices=("auto", "point", "comma"), default="auto", help="the decimal mark")
    group.add_argument("--header", choices=("auto", "yes", "no"), default="auto", help="whether line 1 holds names")
    group.add_argument(
        "--index",
        choices=("auto", "drop", "keep"),
        default="auto",
        help="what to do with a first column without a name; auto leaves out one that counts the rows",
    )
    group.add_argument("--delimiter", type=delimiter, help="the character between columns, or tab")
    group.add_argument("--comment", metavar="START", help="leave out lines that begin with this (none by default)")
    group.add_argument(
        "--missing",
        metavar="WORDS",
        help="what represents a missing value beside the empty field, separated by commas "
        f"(default {','.join(MISSING[1:])})",
    )
    group.add_argument(
        "--on-missing", type=on_missing, default="fill", metavar="WHAT", help=f"with a missing value: {if_missing}"
    )
    group.add_argument("--encoding", default="utf-8", help="of a text file (default %(default)s)")


def choices_of(arguments):
    """The options above as data_files.py takes them."""
    from nbprop.io.csv_files import TextFormat
    from nbprop.io.data_files import Choices

    missing = MISSING if arguments.missing is None else ("", *(word.strip() for word in arguments.missing.split(",")))
    header = {"auto": None, "yes": True, "no": False}[arguments.header]
    decimal = {"auto": None, "point": ".", "comma": ","}[arguments.decimal]
    return Choices(
        form=TextFormat(header, arguments.delimiter, arguments.comment or None, missing, arguments.encoding, decimal),
        target=tuple(arguments.target),
        targets=arguments.targets,
        drop=tuple(arguments.drop),
        index=arguments.index,
        category=tuple(arguments.category),
        on_missing=arguments.on_missing,
        on_unknown=getattr(arguments, "on_unknown", "refuse"),
    )
