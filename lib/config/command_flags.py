"""What a command line asks for."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from lib.config.settings import Section, expanded, setting


@dataclass(frozen=True)
class Command(Section):
    """What to do, beside training."""

    title = "command"
    lifetime = "machine"
    cfgs: tuple[str, ...] = setting(
        (), "YAML files with settings; a later file overrides an earlier one", value="FILE", lifetime="call"
    )
    imports: tuple[str, ...] | None = setting(
        None, "Python modules of yours that register data sets, networks or methods", value="MODULE"
    )
    evaluate: str | None = setting(
        None, "score the model of this checkpoint instead of training", value="FILE", convert=expanded
    )
    predict: str | None = setting(
        None,
        "put the images of --data-root into the clusters of this checkpoint instead of training",
        value="FILE",
        convert=expanded,
    )
    copy_to: str | None = setting(
        None,
        "new folder for copies of the images, with a folder for each cluster",
        value="FOLDER",
        lifetime="call",
        convert=expanded,
    )
    link: bool = setting(False, "with --copy-to: make symbolic links instead of copies", lifetime="call")
    export: str | None = setting(
        None,
        "with --evaluate: write the weights to this .safetensors file, or the model to this .onnx file",
        value="FILE",
        convert=expanded,
    )
    resume: str | None = setting(
        None,
        "continue the run of this checkpoint; auto = of the newest session with these settings, if there is one",
        value="FILE|auto",
        convert=expanded,
    )
    restart: bool = setting(False, "with --resume: take only the weights, and start a new session")
    dry_run: bool = setting(False, "show sizes, steps, time and memory of the run, and train nothing", lifetime="call")
    list: bool = setting(False, "show every method, data set, network, optimizer and schedule", lifetime="call")
    help: bool | Literal["all"] = setting(
        False, "show the most used settings; all = every setting", value="[all]", lifetime="call"
    )

    @property
    def trains(self) -> bool:
        return not (self.evaluate or self.predict)
