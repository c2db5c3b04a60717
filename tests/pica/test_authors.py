from __future__ import annotations

import io
import json
import pickle
import re
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import GOLDEN, ROOT, fill
from runs import scores_shown

import main
from lib.checkpoints import checkpoint
from lib.config import command_line, config
from lib.errors import UserError
from pica import legacy
from pica.authors import convert


def authors_net(double: bool = True) -> OrderedDict[str, torch.Tensor]:
    """The authors' state dict, its weights written by the recorded formula."""
    keys = json.loads((GOLDEN / "pica_state_dict_keys.json").read_text())["cifar"]
    net = OrderedDict()
    fixed = {"sobel.0.weight": torch.full((1, 3, 1, 1), 1 / 3).double()}
    kernel = torch.tensor([[1.0, 0, -1], [2, 0, -2], [1, 0, -1]], dtype=torch.float64)
    fixed["sobel.1.weight"] = torch.stack([kernel, kernel.T])[:, None]
    for i, (key, shape) in enumerate(keys):
        value = fill(i, key, shape)
        if key.startswith("sobel"):
            value = fixed.get(key, torch.zeros(shape, dtype=torch.float64))
        net[key] = value if double or not value.is_floating_point() else value.float()
    return net


def save(path: Path, net: Any, modern: bool) -> Path:
    content = {"net": net, "optimizer": {"state": {}, "param_groups": []}, "acc": np.float64(0.25), "epoch": 2}
    torch.save(content, path, _use_new_zipfile_serialization=modern)
    return path


@pytest.mark.parametrize("modern", [False, True])
@pytest.mark.parametrize("prefix", ["", "module."])
def test_their_checkpoints_evaluate_to_the_recorded_outputs(modern: bool, prefix: str, tmp_path: Path) -> None:
    net = OrderedDict((prefix + key, value) for key, value in authors_net().items())
    stored = checkpoint.load(save(tmp_path / "latest.ckpt", net, modern))
    golden = np.load(GOLDEN / "pica_resnet34_cifar.npz", allow_pickle=False)
    raw = main.DEFAULTS | command_line.collect(
        ["--tfm-size", "32", "--tfm-resize", "40", "--dataset", "digits"], main.SECTIONS
    )
    method = main.build(config.resolve(raw, main.SECTIONS, stored["config"])).method.double()
    checkpoint.load_weights(method, stored["method"], "it")
    method.eval()
    with torch.no_grad():
        for head in range(2):
            found = method.assign(torch.from_numpy(golden["x"]), head)
            np.testing.assert_allclose(found, golden[f"out{head}"], rtol=1e-9)


def test_the_true_legacy_file_is_read_to_its_tensors() -> None:
    content = (GOLDEN / "pica_legacy.ckpt").read_bytes()
    expected = np.load(GOLDEN / "pica_legacy_tensors.npz", allow_pickle=False)
    state = legacy.load(content)
    assert state["acc"] == 0.25 and state["epoch"] == 2 and set(state["net"]) == set(expected)
    for name, value in expected.items():
        np.testing.assert_array_equal(state["net"][name], value)
        assert state["net"][name].numpy().dtype == value.dtype


def test_a_foreign_name_in_the_true_file_is_refused_before_anything_runs(tmp_path: Path) -> None:
    content = (GOLDEN / "pica_legacy.ckpt").read_bytes()
    assert content.count(b"ctorch._utils\n_rebuild_tensor_v2\n") == 1
    # A name of equal length in the place of theirs: `os.getcwd` is harmless, and not on the list.
    spoiled = content.replace(b"ctorch._utils\n_rebuild_tensor_v2\n", b"cos\ngetcwd\n")
    (tmp_path / "bad.ckpt").write_bytes(spoiled)
    with pytest.raises(UserError, match=r"names os\.getcwd, which no checkpoint needs; nothing in it was executed"):
        checkpoint.load(tmp_path / "bad.ckpt")


class Payload:
    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[object, ...]:
        import os

        return os.mkdir, (str(self.mark),)


@pytest.mark.parametrize("modern", [False, True])
def test_a_payload_in_their_format_does_not_run(modern: bool, tmp_path: Path) -> None:
    mark = tmp_path / "executed"
    for net in ({"layer1.0.weight": Payload(mark)}, Payload(mark), {Payload(mark): 1}):
        with pytest.raises(UserError, match="bad.ckpt"):
            checkpoint.load(save(tmp_path / "bad.ckpt", net, modern))
    assert not mark.exists()


def old_file(net: Any) -> bytes:
    """A file of torch's old kind whose object is what a pickle of `net` makes, without storages."""
    parts = (legacy.MAGIC, legacy.PROTOCOL, {"little_endian": True}, net, [])
    return b"".join(pickle.dumps(part, protocol=2) for part in parts)


class Reduced:
    def __init__(self, module: str, name: str, *arguments: object) -> None:
        self.text = f"c{module}\n{name}\n".encode()
        self.arguments = arguments

    def pickle(self) -> bytes:
        body = pickle.dumps(self.arguments, protocol=2)[2:-1]
        return b"\x80\x02" + self.text + body + b"R."


@pytest.mark.parametrize(
    "reduced",
    [
        Reduced("builtins", "eval", "1"),
        Reduced("torch._utils", "_rebuild_tensor_v2", 1, 0, (1,), (1,), False, {}),
        Reduced("numpy.core.multiarray", "scalar", None, b"\0" * 4),
        Reduced("_codecs", "encode", "x", "zlib"),
        Reduced("collections", "OrderedDict", 5),
    ],
)
def test_stand_ins_refuse_what_they_are_not_for(reduced: Reduced) -> None:
    head = b"".join(pickle.dumps(part, protocol=2) for part in (legacy.MAGIC, legacy.PROTOCOL, {"little_endian": True}))
    with pytest.raises(legacy.Refused):
        legacy.load(head + reduced.pickle() + pickle.dumps([], protocol=2))


def test_a_tensor_may_not_reach_beyond_its_numbers() -> None:
    buffer = io.BytesIO()
    torch.save({"net": {"w": torch.arange(4.0)}, "epoch": 1}, buffer, _use_new_zipfile_serialization=False)
    content = buffer.getvalue()
    assert torch.equal(legacy.load(content)["net"]["w"], torch.arange(4.0))
    shape = b"K\x04\x85"
    stride = b"K\x01\x85"
    assert content.count(shape) == 1 and content.count(stride) == 1
    for spoiled in (content.replace(shape, b"K\x05\x85"), content.replace(stride, b"K\x02\x85"), content[:-1]):
        with pytest.raises(legacy.Refused):
            legacy.load(spoiled)


def test_heads_sobel_and_network_are_read_off_the_keys() -> None:
    net = authors_net(double=False)
    found = convert(net)["config"]
    assert found == {
        "method": "pica", "network": "resnet34", "net_heads": [70, 20], "num_clusters": 20, "net_sobel": True,
        "net_stem": "small-pool-padded",
    }  # fmt: skip
    plain = OrderedDict((key, value) for key, value in net.items() if not key.startswith("sobel"))
    plain["layer1.0.weight"] = torch.zeros(64, 3, 3, 3)
    without = convert(plain)
    assert without["config"]["net_sobel"] is False and without["config"]["net_cin"] == 3
    assert "network.stages.3.2.bn2.weight" in without["method"]
    for spoil, message in (
        (lambda net: net.pop("heads.0.0.weight"), "lacks the heads"),
        (lambda net: net.pop("layer1.0.weight"), "lacks the heads or the first layer"),
        (lambda net: net.update({"layer6.weight": torch.zeros(1)}), "no weight of the PICA authors' network"),
        (lambda net: [net.pop(key) for key in list(net) if key.startswith("layer3.3")], "blocks"),
    ):
        broken = OrderedDict(net)
        spoil(broken)
        with pytest.raises(UserError, match=message):
            convert(broken)


@pytest.mark.slow
def test_evaluating_and_restarting_from_their_checkpoint(
    cli: Callable[..., tuple[int, str, str]], tmp_path: Path, class_folders: Path
) -> None:
    path = save(tmp_path / "theirs.ckpt", authors_net(double=False), modern=False)
    words = ("--cfgs", ROOT / "configs/base.yaml", ROOT / "configs/image_folder.yaml", "--data-root", class_folders,
             "--tfm-size", 16, "--tfm-resize", 18, "--num-workers", 0, "--seed", 0)  # fmt: skip
    status, out, err = cli(*words, "--evaluate", path, "--export", tmp_path / "theirs.safetensors")
    assert status == 0 and re.search(r"pica +0\.", out), err
    status, again, err = cli(*words, "--evaluate", tmp_path / "theirs.safetensors")
    assert status == 0 and scores_shown(again) == scores_shown(out), err
    status, _, err = cli(
        *words, "--resume", path, "--restart", "--max-steps", 1, "--batch-size", 12, "--session", "new"
    )
    assert status == 0, err
    state = checkpoint.load(tmp_path / "sessions" / "new" / "checkpoint" / "latest.ckpt")
    assert state["config"]["net_heads"] == [70, 20] and state["step"] == 1
    status, _, err = cli(*words, "--resume", path)
    assert status == 2 and "holds weights alone" in err and "--restart" in err and err.count("\n") == 1
