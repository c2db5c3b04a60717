"""How long the value of a setting holds, and what a checkpoint brings."""

from __future__ import annotations

import typing
from dataclasses import dataclass
from typing import Any

import pytest
from conftest import ROOT

import main
from lib.config import config
from lib.config.config import FLAG, Raw
from lib.config.registry import Registry
from lib.config.sections import all_sections, fields_of, lifetime_of
from lib.config.settings import LIFETIMES, Lifetime, Section, setting
from lib.errors import UserError
from lib.methods import method

SETTINGS: dict[Lifetime, str] = {
    "call": "cfgs copy_to link dry_run list help session debug open download",
    "machine": "imports evaluate predict export resume restart session_root brief verbose log_file log_tfb gpus processes "
    "threads jobs compile memory_budget num_workers disk_cache cache published published_split published_nmi",
    "start": "on_bad_image max_megapixels label_level class_list net_weights save_backbone optim_weight_decay optim_beta "
    "optim_eps optim_amsgrad optim_alpha optim_momentum optim_centered optim_dampening optim_nesterov lr_policy base_lr "
    "warmup_steps lr_schedule lr_decay_step lr_decay_rate lr_decay_offset max_epochs max_steps display_freq "
    "save_every_epochs save_every_steps keep eval_every best_by eval_batch_size top_k eval_sample baseline tfm_backend "
    "seeds precision channels_last tf32",
    "run": "batch_size feature_engine feature_neighbours net_freeze_epochs net_lr_scale feature_views feature_seed views "
    "neighbours_by optimizer seed",
    "images": "dataset data_root train_splits test_splits labels classifier_splits",
    "network": "method num_clusters sync_batchnorm group_crops nmb_crops size_crops min_scale_crops max_scale_crops "
    "prototypes project_dim classifier_dim feature_layer tau eps sinkhorn_iterations frozen_prototype_steps "
    "idle_classifier batchnorm_scores net_heads net_sobel data_nrepeat pica_lamda pica_idle_heads transform "
    "tfm_working_size tfm_decode_side tfm_size tfm_resize tfm_scale tfm_ratio tfm_colorjitter "
    "tfm_colorjitter_probability tfm_random_grayscale tfm_random_hflip tfm_means tfm_stds network net_cin net_cout "
    "net_init net_freeze net_width net_stem net_avgpool_size",
}  # a setting that moves to another row changes what a checkpoint brings


def test_the_lifetime_of_every_setting() -> None:
    shipped = ("lib", "pica", "imc_swav")
    names: dict[str, set[str]] = {lifetime: set() for lifetime in LIFETIMES}
    for section, _, _ in all_sections(main.SECTIONS):
        if section.__module__.split(".")[0] in shipped:
            for name in fields_of(section):
                names[lifetime_of(name, section)].add(name)
    assert names == {lifetime: set(words.split()) for lifetime, words in SETTINGS.items()}


def test_there_is_a_sentence_for_each_lifetime() -> None:
    assert tuple(LIFETIMES) == typing.get_args(Lifetime)
    text = (ROOT / "docs/command-line.md").read_text(encoding="utf-8")
    assert all(f"| {lifetime} | {meaning} |" in text for lifetime, meaning in LIFETIMES.items())


def section_of(value: Lifetime) -> type[Section]:
    @dataclass(frozen=True)
    class Sized(Section):
        lifetime = value
        size: int = setting(0, "a size")

    return Sized


Call, Machine, Start, Run, Images, Network = map(section_of, LIFETIMES)


def test_a_section_without_a_lifetime_has_start() -> None:
    @dataclass(frozen=True)
    class Plain(Section):
        size: int = setting(0, "a size")

    assert lifetime_of("size", Plain) == "start"


DEFAULT, CHECKPOINT, FILE, FLAGGED = range(4)  # the value that each of them gives
NOTED = "the checkpoint's value, and a note"
REFUSED = "an error"
FREE = (CHECKPOINT, FILE, FLAGGED)
UNKNOWN_TO_CHECKPOINTS = (DEFAULT, FILE, FLAGGED)
BOUND = (CHECKPOINT, NOTED, REFUSED)


@pytest.mark.parametrize(
    ("section", "evaluated", "predicted", "resumed"),  # each: where nothing, a file, a flag gives a value
    [
        (Call, UNKNOWN_TO_CHECKPOINTS, UNKNOWN_TO_CHECKPOINTS, UNKNOWN_TO_CHECKPOINTS),
        (Machine, UNKNOWN_TO_CHECKPOINTS, UNKNOWN_TO_CHECKPOINTS, UNKNOWN_TO_CHECKPOINTS),
        (Start, FREE, FREE, FREE),
        (Run, FREE, FREE, BOUND),
        (Images, FREE, UNKNOWN_TO_CHECKPOINTS, (CHECKPOINT, NOTED, FLAGGED)),
        (Network, BOUND, BOUND, BOUND),
    ],
)
def test_what_holds_where_a_checkpoint_is_used(
    section: type[Any], evaluated: tuple[Any, ...], predicted: tuple[Any, ...], resumed: tuple[Any, ...]
) -> None:
    stored = {"size": CHECKPOINT}
    for_prediction = config.for_other_images(stored, [section])
    given = ({}, {"size": Raw(FILE, "a.yaml")}, {"size": Raw(str(FLAGGED), FLAG)})
    assert tuple(outcome(section, raw, stored) for raw in given) == evaluated
    assert tuple(outcome(section, raw, for_prediction) for raw in given) == predicted
    assert tuple(outcome(section, raw, stored, goes_on=True) for raw in given) == resumed


def outcome(section: type[Any], raw: dict[str, Raw], stored: dict[str, Any], goes_on: bool = False) -> Any:
    try:
        resolved = config.resolve(raw, [section], stored, goes_on)
    except UserError as error:
        assert str(error) == (
            "--size 3 contradicts the checkpoint, which was trained with size 1; leave the flag out"
        )  # fmt: skip
        return REFUSED
    if resolved.notes:
        assert resolved.notes == ("size 2 in a.yaml yields to the checkpoint's 1",)
        assert resolved.of(section).size == CHECKPOINT
        return NOTED
    return resolved.of(section).size


def test_what_is_kept_with_a_run_and_what_makes_it_the_same() -> None:
    kept = {section: config.resolve({}, [section]) for section in (Call, Machine, Start, Run, Images, Network)}
    assert [section for section, resolved in kept.items() if not resolved.as_dict()] == [Call]
    assert [section for section, resolved in kept.items() if not resolved.identity()] == [Call, Machine]


def test_a_change_at_a_start_is_reported_and_one_of_the_machine_is_not() -> None:
    given = {"size": Raw("3", FLAG)}
    before = {"size": CHECKPOINT}
    assert config.resolve(given, [Start], before, True).changes(before) == ["size: 1 before, 3 now"]
    assert config.resolve(given, [Images], before, True).changes(before) == ["size: 1 before, 3 now"]
    assert config.resolve(given, [Machine], before, True).changes(before) == []


def test_what_the_program_gives_yields_without_a_note() -> None:
    resolved = config.resolve({"size": Raw(FILE, config.DEFAULT)}, [Network], {"size": CHECKPOINT})
    assert resolved.of(Network).size == CHECKPOINT and not resolved.notes


def test_a_setting_overrides_the_lifetime_of_its_section() -> None:
    @dataclass(frozen=True)
    class Mixed(Section):
        lifetime = "machine"
        size: int = setting(0, "a size")
        colour: int = setting(0, "a colour", lifetime="network")

    stored = {"size": CHECKPOINT, "colour": CHECKPOINT}
    assert config.resolve({}, [Mixed], stored).as_dict() == {"size": DEFAULT, "colour": CHECKPOINT}


def test_what_is_left_open_contradicts_no_checkpoint() -> None:
    @dataclass(frozen=True)
    class Open(Section):
        lifetime = "network"
        size: int | None = setting(None, "a size", adaptive=True)

    for written in (Raw("none", FLAG), Raw(None, "a.yaml")):
        resolved = config.resolve({"size": written}, [Open], {"size": CHECKPOINT}, goes_on=True)
        assert resolved.of(Open).size == CHECKPOINT and not resolved.notes


def test_the_former_word_for_a_section_that_a_checkpoint_brings() -> None:
    class Former(Section):
        bound = True

    class Heir(Former):
        pass

    class Unbound(Section):
        bound = False

    assert [section.lifetime for section in (Former, Heir, Unbound, Section)] == [
        "network",
        "network",
        "start",
        "start",
    ]


def test_a_checkpoint_brings_the_settings_of_a_method(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(method, "_registry", Registry("method", exclusive=True))

    class Mine:
        @dataclass(frozen=True)
        class Settings(Section):
            pass

    method.register("mine", Mine)
    assert Mine.Settings.lifetime == "network"


def test_an_unknown_lifetime_is_an_error() -> None:
    with pytest.raises(
        ValueError, match="no setting has the lifetime 'for ever'; the lifetimes are call, machine, start"
    ):
        setting(0, "a size", lifetime="for ever")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="Eternal has the lifetime 'for ever'; there are call, machine, start"):
        type("Eternal", (Section,), {"lifetime": "for ever"})
