"""The files of a checkpoint folder."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jaxmix.core.errors import ConfigError


class CheckpointFiles:
    """The files of a checkpoint folder in the form of Hugging Face.

    Args:
        folder: its path.
        where: what names it, for errors.
        needed: files that it must have.
        otherwise: what else can be named in its place, for errors.

    Attributes:
        folder: its path.
        config: content of `config.json`.

    Raises:
        ConfigError: the folder or a needed file is missing, or a file is not JSON.
    """

    def __init__(
        self, folder: str | Path, *, where: str, needed: Sequence[str] = ("config.json",), otherwise: str = ""
    ):
        self.folder = Path(folder)
        if not self.folder.is_dir():
            raise ConfigError(
                f"there is no folder {str(folder)!r}",
                where=where,
                fix=f"Name the folder of a checkpoint ({', '.join(needed)}, model.safetensors){otherwise}.",
            )
        for name in needed:
            if not (self.folder / name).is_file():
                raise ConfigError(
                    f"the checkpoint has no {name}",
                    where=str(folder),
                    fix="Fetch the whole repository of the model; the vocab.txt of a slow tokenizer is not enough.",
                )
        self.config = self.json("config.json")

    def json(self, name: str) -> Any:
        """The content of a JSON file, an empty mapping where there is none."""
        path = self.folder / name
        if not path.is_file():
            return {}
        try:
            return json.loads(path.read_text(encoding="utf-8"))
        except ValueError as error:
            raise ConfigError(f"{name} is not JSON: {error}", where=str(self.folder)) from error

    def digest(self) -> str:
        """Hash of the weights, the configuration and the tokenizer: every byte of their files."""
        digest = hashlib.blake2b(digest_size=16)
        plain = [name for name in ("config.json", "tokenizer.json") if (self.folder / name).is_file()]
        for name in sorted({*(path.name for path in self.folder.glob("*.safetensors")), *plain}):
            digest.update(f"{name} {(self.folder / name).stat().st_size} ".encode())
            with (self.folder / name).open("rb") as file:
                while chunk := file.read(1 << 22):
                    digest.update(chunk)
        return digest.hexdigest()
