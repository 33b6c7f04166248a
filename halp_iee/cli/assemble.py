"""Turns options into the records that the library takes."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from halp_iee.run.job import DeviceChoice

if TYPE_CHECKING:
    from halp_iee.train.recipe import Recipe


def device_choice(gpu: str, **options: Any) -> DeviceChoice:
    """The device options as a record; the time budget's default is left to the stage that knows the input's size."""
    return DeviceChoice(name=gpu, **options)


def recipe(file: Path | None, **overrides: Any) -> Recipe:
    """The recipe of a file, or the default one, with what was given on the command line on top.

    Raises:
        HalpError: no such file, not JSON.
        UsageError: an unknown key or a value out of range.
    """
    from halp_iee.errors import UsageError
    from halp_iee.run.directory import read_json
    from halp_iee.train.recipe import Recipe

    given = read_json(file) if file else {}
    if not isinstance(given, dict):
        raise UsageError(
            f"cannot use {file} as a recipe", "it is not a JSON object", 'write one such as {"epochs": 20}'
        )
    return Recipe.of({**given, **{k: v for k, v in overrides.items() if v is not None}})
