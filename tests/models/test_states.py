"""Hidden states that lie here, and the name of the head that they belong to."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from limbeck.models import head as head_module
from limbeck.models.head import Head
from limbeck.models.states import LocalStates

HEAD = Head(torch.randn(50, 8, generator=torch.Generator().manual_seed(0)), torch.arange(50.0), 1.5, 30.0)


def test_local_states_are_the_tensor() -> None:
    tensor = torch.zeros(3, 8)
    states = LocalStates(tensor)
    assert states.shape == (3, 8)
    assert states.fetch() is tensor


def changed_weight() -> torch.Tensor:
    weight = HEAD.weight_Vd.clone()
    weight[49, 7] = torch.nextafter(weight[49, 7], torch.tensor(9.0))
    return weight


OTHERS = {
    "one bit": replace(HEAD, weight_Vd=changed_weight()),
    "other bias": replace(HEAD, bias_V=torch.zeros(50)),
    "no bias": replace(HEAD, bias_V=None),
    "multiplier": replace(HEAD, multiplier=1.0),
    "soft cap": replace(HEAD, softcap=None),
    "dtype": replace(HEAD, weight_Vd=HEAD.weight_Vd.bfloat16()),
    "shape": replace(HEAD, weight_Vd=HEAD.weight_Vd.view(25, 16)),
    "fewer rows": HEAD.narrow(49),
}


@pytest.mark.parametrize("other", OTHERS.values(), ids=OTHERS)
def test_another_head_has_another_fingerprint(other: Head) -> None:
    assert other.fingerprint() != HEAD.fingerprint()


def test_the_same_head_has_the_same_fingerprint_wherever_its_bytes_lie(monkeypatch: pytest.MonkeyPatch) -> None:
    wide = torch.zeros(50, 16)
    wide[:, :8] = HEAD.weight_Vd
    view = replace(HEAD, weight_Vd=torch.nn.Parameter(wide[:, :8]))
    assert not view.weight_Vd.is_contiguous()
    assert view.fingerprint() == HEAD.fingerprint()
    before = HEAD.fingerprint()
    monkeypatch.setattr(head_module, "HASHED_BYTES", 40)
    assert HEAD.fingerprint() == before
