"""Recipes are LightningCLI configs; cells and ``clustrast fit`` read them the same way."""

import json
import re
from argparse import ArgumentError as ParserError
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from copy import deepcopy
from pathlib import Path
from typing import Any

from lightning import LightningDataModule, LightningModule
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.cli import (
    ArgsType,
    LightningArgumentParser,
    LightningCLI,
    instantiate_class,
)

from common.errors import ArgumentError, ClustrastError

HEADLESS = {
    "logger": False,
    "enable_progress_bar": False,
    "enable_model_summary": False,
    "enable_checkpointing": False,
    "limit_val_batches": 0,
}


class ClustrastCLI(LightningCLI):
    """LightningCLI for any method on any data, with the stage that comes before ``fit``."""

    model: Any
    datamodule: Any
    trainer: Any

    def __init__(self, args: ArgsType = None, **options: Any):
        super().__init__(
            LightningModule,
            LightningDataModule,
            subclass_mode_model=True,
            subclass_mode_data=True,
            auto_configure_optimizers=False,
            args=args,
            **options,
        )

    def parse_arguments(self, parser: LightningArgumentParser, args: ArgsType) -> None:
        parse: Any = parser.parse_object if isinstance(args, Mapping) else parser.parse_args
        self.config = parse(args)

    def before_fit(self) -> None:
        if self.config.fit.ckpt_path is None:
            self.prepare()

    def prepare(self) -> None:
        """The model's stages before ``fit``, with Trainers like the one that ``fit`` will use."""
        trainer = self.config.get(str(self.subcommand), self.config).trainer
        options = {
            name: trainer[name] for name in ("accelerator", "devices", "enable_progress_bar")
        }
        self.model.before_fit(self.datamodule, **options)


class Recipe(ClustrastCLI):
    """A recipe that was read; :meth:`build` makes model, data and trainer of it.

    Raises:
        ArgumentError: a key or value that does not exist; names the files and the key.
    """

    def __init__(self, source: str, args: ArgsType):
        try:
            super().__init__(
                args,
                run=False,
                save_config_callback=None,
                seed_everything_default=False,
                parser_kwargs={"exit_on_error": False},
            )
        except ParserError as error:
            raise ArgumentError(f"{source}: {in_one_line(str(error))}") from error

    @classmethod
    def read(cls, files: Sequence[Path], overrides: Mapping[str, Any]) -> "Recipe":
        """Later files lie on top of earlier ones, ``overrides`` on top of all."""
        for path in files:
            if not path.is_file():
                raise ArgumentError(f"recipe {path} does not exist")
        configs = [part for path in files for part in ("--config", str(path))]
        changes = [
            f"--{key}={value if isinstance(value, str) else json.dumps(value)}"
            for key, value in overrides.items()
        ]
        return cls(" + ".join(path.name for path in files), [*configs, *changes])

    @classmethod
    def from_settings(cls, settings: Mapping[str, Any]) -> "Recipe":
        """From what :attr:`settings` returned, possibly changed."""
        return cls("settings", deepcopy(dict(settings)))

    def instantiate_classes(self) -> None:
        """Put off until :meth:`build`."""

    @property
    def settings(self) -> dict[str, Any]:
        """Model and data with all their arguments; of the trainer what is not its default."""
        self._dump_config()
        defaults = self.parser.get_defaults().trainer
        trainer = {
            key: value
            for key, value in self.config_dump["trainer"].items()
            if value != defaults.get(key)
        }
        return {"model": self.config_dump["model"], "data": self.config_dump["data"]} | (
            {"trainer": trainer} if trainer else {}
        )

    def build(self, callbacks: Sequence[Callback] = ()) -> None:
        """Sets ``model``, ``datamodule`` and a ``trainer`` without logger, bars or checkpoints."""
        self.trainer_defaults = {"callbacks": list(callbacks)}
        for key, value in HEADLESS.items():
            self.config.trainer[key] = value
        with unwrapped():
            super().instantiate_classes()


def load_data(settings: Mapping[str, Any]) -> Any:
    """The data module of :attr:`Recipe.settings`, set up."""
    data = instantiate_class((), settings["data"])
    data.prepare_data()
    data.setup("fit")
    return data


def in_one_line(message: str) -> str:
    """What a jsonargparse error says, without the parts that only its developers need.

    Example:
        >>> in_one_line('''Parser key "model":
        ...   Does not validate against any of the Union subtypes
        ...   Subtypes: [<class 'Module'>, <class 'NoneType'>]
        ...   Errors:
        ...     - Problem with given class_path 'graphs.SCGC':
        ...         Option 'alhpa' is not accepted
        ...     - Expected a <class 'NoneType'>
        ...   Given value type: <class 'dict'>
        ...   Given value: {'class_path': 'graphs.SCGC'}''')
        "key model: graphs.SCGC: option 'alhpa' is not accepted"
    """
    noise = (
        "Does not validate against",
        "Subtypes:",
        "Errors:",
        "Expected a <class 'NoneType'>",
        "Given value type:",
        "Given value: {",
        "Given value: NestedArg",
    )
    lines = [line.strip().removeprefix("- ") for line in message.splitlines()]
    text = " ".join(line for line in lines if line and not line.startswith(noise))
    for pattern, replacement in (
        (r"[Pp]arser key \"([^\"]*)\"", r"key \1"),
        (r"Problem with given class_path '([^']*)'", r"\1"),
        (r"<class '([^']*)'>", r"\1"),
        (r"Option '", "option '"),
        (r"Type typing\.Callable.* callable class: ", ""),
        (r"\. Got value: Namespace\(.*", ""),
        (r"Expected a ", "expected "),
        (r"\.? (Got|Given) value: ", ", got "),
    ):
        text = re.sub(pattern, replacement, text)
    return text


def run_engine(arguments: list[str]) -> None:
    """``clustrast fit | validate | test | predict``.

    Raises:
        ArgumentError: what LightningCLI cannot parse, in one line.
    """
    try:
        with unwrapped():
            ClustrastCLI(arguments, parser_kwargs={"prog": "clustrast", "exit_on_error": False})
    except ParserError as error:
        raise ArgumentError(in_one_line(str(error))) from error


@contextmanager
def unwrapped() -> Iterator[None]:
    """Lets the errors of a constructor out of those that jsonargparse wraps them in."""
    try:
        yield
    except ValueError as error:
        inner: BaseException | None = error
        while inner and not isinstance(inner, ClustrastError):
            inner = inner.__cause__
        raise inner or error from None
