"""Costs against the published figures (avel.md 4.5, dave.md 2.6 and 3), and against products counted by hand."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from avtool.models.cacenet import CACENet, CACENetConfig
from avtool.models.cost import TABLE, flops, measure, parameters
from avtool.models.segments import bilstm, recur


@pytest.mark.parametrize(("dims", "billions"), [((512, 128), 1.77), ((2048, 2048), 2.55)])
def test_cace_net_costs_what_is_published(dims: tuple[int, int], billions: float) -> None:
    network = CACENet(CACENetConfig(*dims)).eval()
    found = flops(network, torch.zeros(1, 10, 7, 7, dims[0]), torch.zeros(1, 10, dims[1]))
    assert found / 1e9 == pytest.approx(billions, abs=0.01)


def test_recurrent_layers_and_products_count_as_by_hand() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.rnn, self.out = bilstm(6, 4), nn.Linear(8, 3)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            out: torch.Tensor = self.out(recur(self.rnn, x, torch.ones(x.shape[:2], dtype=torch.bool)))
            return out

    net = Net()
    # per step and direction four gates of 4 rows each read 6 inputs and 4 states; a multiply-add is two operations
    assert flops(net, torch.zeros(2, 5, 6)) == 2 * 5 * (2 * 2 * 4 * 4 * (6 + 4)) + 2 * 5 * 2 * 8 * 3
    assert parameters(net) == 2 * (4 * 4 * (6 + 4 + 2)) + 8 * 3 + 3


def test_the_table_has_the_published_sizes() -> None:
    sizes = {}
    for name, (make, _) in TABLE.items():
        with torch.device("meta"):
            sizes[name] = parameters(make())
    assert sizes["CACE-Net, VGG-19 + VGGish"] == 13_118_681 - 3_835_264
    assert sizes["UnAV, I3D + VGGish, 224 rows"] == 139_544_114
    assert sizes["LoCo, ONE-PEACE, 256 rows"] / 1e6 == pytest.approx(75.0, abs=0.5)


def test_time_is_measured_only_when_asked_for() -> None:
    def make() -> nn.Module:
        return CACENet(CACENetConfig(12, 8, 3, 16, 8, 16))

    shapes = (1, 10, 2, 2, 12), (1, 10, 8)
    assert measure("x", make, shapes).seconds != measure("x", make, shapes).seconds  # NaN
    assert measure("x", make, shapes, timed=True).seconds >= 0
