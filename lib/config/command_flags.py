"""What a command line asks for."""

from __future__ import annotations

from dataclasses import dataclass

from lib.config.settings import Section, expanded, setting


@dataclass(frozen=True)
class Command(Section):
    """What to do, beside training."""

    title = "command"
    local = True
    cfgs: tuple[str, ...] = setting((), "YAML files, later ones overriding earlier ones", transient=True)
    imports: tuple[str, ...] | None = setting(None, "modules of yours that register components")
    evaluate: str | None = setting(None, "score this checkpoint instead of training", convert=expanded)
    predict: str | None = setting(
        None, "cluster the pictures of --data-root by this checkpoint instead of training", convert=expanded
    )
    copy_to: str | None = setting(
        None,
        "new folder that gets a copy of every picture, in a folder for each cluster",
        transient=True,
        convert=expanded,
    )
    link: bool = setting(False, "with --copy-to: symbolic links instead of copies", transient=True)
    export: str | None = setting(
        None,
        "with --evaluate: write the weights to this .safetensors file, or the model to this .onnx file",
        convert=expanded,
    )
    resume: str | None = setting(
        None,
        "go on from this checkpoint; auto: from the newest session of these very settings, if any",
        convert=expanded,
    )
    restart: bool = setting(False, "with --resume: take the weights alone, into a new session")
    dry_run: bool = setting(False, "print what would run, and stop", transient=True)
    list: bool = setting(False, "print the registered components, and stop", transient=True)
    help: bool = setting(False, "print the settings of the chosen components, and stop", transient=True)

    @property
    def trains(self) -> bool:
        return not (self.evaluate or self.predict)
