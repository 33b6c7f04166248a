"""From what a person writes after `--data` to a data set."""

from __future__ import annotations

import difflib
from pathlib import Path

from halp_iee.errors import DataError, UsageError
from halp_iee.train.records import Data

FORMS = ("digits", "digits-hard", "cifar10:DIR", "cifar100:DIR", "imagefolder:DIR")
"""Every form of `--data` that can be read."""


def load(spec: str, *, seed: int = 0, image_size: int | None = None) -> Data:
    """Read a data set. Nothing is downloaded.

    Args:
        spec: one of `FORMS`.
        seed: of the images of `digits-hard`; the other data sets are what they are.
        image_size: side of the images of `imagefolder`; None: 224. The others have their own.

    Raises:
        UsageError: the form is unknown.
        DataError: the directory or a file is missing or broken.
    """
    kind, colon, place = spec.partition(":")
    if kind in ("digits", "digits-hard"):
        from halp_iee.train.digits import digits, digits_hard

        if colon:
            raise UsageError(f"unknown data set {spec!r}", f"{kind} takes no directory", f"write {kind}")
        return digits() if kind == "digits" else digits_hard(seed)
    if kind not in ("cifar10", "cifar100", "imagefolder"):
        raise _unknown(spec, kind)
    if not place:
        raise UsageError(f"the data set {spec!r} cannot be read", "no directory is named", f"write {kind}:DIR")
    folder = Path(place).expanduser()
    if not folder.is_dir():
        why = f"{folder} is a file, not a directory" if folder.exists() else f"there is no directory {folder}"
        raise DataError(f"the data set {spec!r} cannot be read", why, "check the path; nothing is downloaded")
    if kind == "imagefolder":
        from halp_iee.train.folders import image_folder

        return image_folder(spec, folder, image_size or 224)
    from halp_iee.train.cifar import cifar

    return cifar(spec, folder, kind)


def _unknown(spec: str, kind: str) -> UsageError:
    if kind == "voc":
        why = "its images have no single class, and training here is classification"
    else:
        why = f"the known ones are {', '.join(FORMS)}"
    near = difflib.get_close_matches(kind, [form.split(":")[0] for form in FORMS], n=1)
    forms = [form for form in FORMS if form.split(":")[0] in near]
    if not forms and Path(spec).expanduser().is_dir():
        forms = [f"imagefolder:{spec}"]
    remedy = f"did you mean {forms[0]}" if forms else "choose one of them" if kind != "voc" else "use imagefolder:DIR"
    return UsageError(f"unknown data set {spec!r}", why, remedy)
