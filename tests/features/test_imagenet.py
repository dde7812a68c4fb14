"""The ImageNet encoders give what torchvision's own networks and transforms give, from the published file on."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
import torch
import torchvision
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.models import MobileNet_V2_Weights, ResNet50_Weights, VGG19_Weights

from avtool import weights
from avtool.errors import UsageError, WeightsError
from avtool.features.encoders import catalog, mobilenet, packed, pictures, resnet, vgg
from avtool.features.encoders.catalog import Options
from avtool.vocabulary import IMAGENET
from tests.features.upstream import CPU, empty, far, hashless, imported, published, shake

CLOSE = 1e-4  # relative
MAKERS = {
    "resnet50-v1": (torchvision.models.resnet50, ResNet50_Weights.IMAGENET1K_V1),
    "resnet50-v2": (torchvision.models.resnet50, ResNet50_Weights.IMAGENET1K_V2),
    "vgg19": (torchvision.models.vgg19, VGG19_Weights.IMAGENET1K_V1),
    "mobilenet_v2": (torchvision.models.mobilenet_v2, MobileNet_V2_Weights.IMAGENET1K_V1),
}


def picture(height: int = 300, width: int = 420, seed: int = 0) -> npt.NDArray[np.uint8]:
    """A smooth picture with edges."""
    rng = np.random.default_rng(seed)
    coarse = Image.fromarray(rng.integers(0, 255, (12, 16, 3), np.uint8)).resize(
        (width, height), Image.Resampling.BICUBIC
    )
    pixels = np.array(coarse)
    pixels[height // 3 : height // 2, width // 4 : width // 2] = rng.integers(0, 255, 3)
    return pixels


def maps_of(network: nn.Module, x: Tensor) -> Tensor:
    """The last map of torchvision's own network."""
    if isinstance(network, torchvision.models.ResNet):
        x = network.maxpool(network.relu(network.bn1(network.conv1(x))))
        return network.layer4(network.layer3(network.layer2(network.layer1(x))))
    return network.features(x)


@pytest.mark.parametrize("name", [pytest.param(n, marks=pytest.mark.slow if n == "vgg19" else ()) for n in MAKERS])
def test_networks_are_torchvisions(tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    make, files = MAKERS[name]
    theirs = shake(empty(lambda: make(weights=None)))
    pixels, transform = picture(), files.transforms()
    prepared = pictures.Size(transform.resize_size[0])(pixels)
    with torch.inference_mode():
        transform.resize_size = [224]
        x = transform(torch.from_numpy(prepared).permute(2, 0, 1))[None]
        expected, logits = maps_of(theirs, x), theirs(x)
    encoder = imported(published(theirs, tmp_path / "upstream.pth"), name, Options(pool="none"))
    del theirs
    assert encoder.prepare is not None
    np.testing.assert_array_equal(encoder.prepare(pixels), prepared)
    with torch.inference_mode():
        maps, tags = encoder.run(torch.from_numpy(prepared)[None])
    assert tags is not None and maps.shape == (1, 7, 7, encoder.dim) and tags.shape == (1, 1000) == (1, encoder.tags)
    assert far(maps.permute(0, 3, 1, 2), expected) < CLOSE and far(tags, logits) < CLOSE
    assert encoder.pictures is not None and encoder.pictures.short is None  # its size is made by `prepare` alone
    if name == "vgg19":  # half a gigabyte is not read twice: what follows is one function for all
        return
    known = hashless()
    monkeypatch.setattr(weights, "manifest", lambda: known)
    pooled, again = catalog.VISUAL[name](CPU).run(torch.from_numpy(prepared)[None])
    assert far(pooled, expected.mean((2, 3))) < CLOSE and again is not None and far(again, logits) < CLOSE


def test_the_class_order_is_torchvisions() -> None:
    theirs = ResNet50_Weights.IMAGENET1K_V1.meta["categories"]
    different = [(a, b) for a, b in zip(theirs, IMAGENET, strict=True) if a.lower() != b.lower()]
    assert len(different) <= 20 and all(set(a.lower().split()) & set(b.lower().split()) for a, b in different), (
        different
    )


# ---------------------------------------------------------------- size of pictures


@pytest.mark.parametrize("size", [(1080, 1920), (360, 640), (640, 360), (180, 320), (256, 256), (231, 500)])
@pytest.mark.parametrize("short", [232, 256])
def test_sizes_are_pils_to_one_step(size: tuple[int, int], short: int) -> None:
    pixels = picture(*size)
    shape = pictures.scaled(*size, short)
    theirs = torchvision.transforms.Compose(
        [torchvision.transforms.Resize(short), torchvision.transforms.CenterCrop(224)]
    )(Image.fromarray(pixels))
    ours = pictures.Size(short)(pixels)
    difference = np.abs(ours.astype(int) - np.array(theirs).astype(int))
    assert ours.shape == (224, 224, 3) and ours.dtype == np.uint8 and min(shape) == short
    assert difference.max() <= 1 and difference.mean() < 0.2


def test_a_squashed_picture_is_whole() -> None:
    pixels = picture(100, 400)
    theirs = Image.fromarray(pixels).resize((224, 224), Image.Resampling.BILINEAR)
    assert np.abs(pictures.Size(None)(pixels).astype(int) - np.array(theirs).astype(int)).max() <= 1


@pytest.mark.parametrize("size", [(2, 6000), (6000, 2), (1, 1), (7, 3)])
def test_odd_pictures_have_their_size(size: tuple[int, int]) -> None:
    pixels = np.full((*size, 3), 77, np.uint8)
    for make in (pictures.Size(256), pictures.Size(None)):
        assert (make(pixels) == 77).all() and make(pixels).shape == (224, 224, 3)


def test_read_only_pixels_are_taken_and_left_alone() -> None:
    pixels = picture()
    pixels.setflags(write=False)
    before = pixels.copy()
    pictures.Size(256)(pixels)
    np.testing.assert_array_equal(pixels, before)


def test_caffes_scale_is_bgr_less_the_mean() -> None:
    red = torch.tensor([255, 0, 0], dtype=torch.uint8).reshape(1, 1, 1, 3)
    assert pictures.caffe(torch.float32)(red).flatten().tolist() == pytest.approx([-103.939, -116.779, 131.32])


# ---------------------------------------------------------------- Keras' VGG-19


def keras_state(network: nn.Module, new: bool) -> dict[str, npt.NDArray[np.float32]]:
    """torchvision's VGG-19 as the datasets of Keras' file: the older names of the published one, or those of today."""
    convs = [layer for layer in network.features if isinstance(layer, nn.Conv2d)]
    names = [f"block{b}_conv{c}" for b, n in ((1, 2), (2, 2), (3, 4), (4, 4), (5, 4)) for c in range(1, n + 1)]
    state = {}
    for name, conv in zip(names, convs, strict=True):
        kernel, bias = (
            (f"{name}/{name}/kernel:0", f"{name}/{name}/bias:0")
            if new
            else (f"{name}/{name}_W_1:0", f"{name}/{name}_b_1:0")
        )
        state[kernel] = conv.weight.detach().numpy().transpose(2, 3, 1, 0)
        state[bias] = conv.bias.detach().numpy()
    return state


@pytest.fixture(scope="module")
def features19() -> nn.Module:
    def make() -> nn.Module:
        network = torchvision.models.vgg19(weights=None)
        del network.classifier
        return network

    return shake(empty(make))


@pytest.mark.parametrize("new", [False, True])
def test_keras_layers_are_found(features19: nn.Module, new: bool) -> None:
    ours = vgg.from_keras(keras_state(features19, new))
    assert ours.keys() == features19.state_dict().keys()
    for name, value in features19.state_dict().items():
        torch.testing.assert_close(ours[name], value, rtol=0, atol=0)
    assert vgg.from_keras(ours).keys() == ours.keys()


def test_caffe_features_are_those_of_the_network(features19: nn.Module, tmp_path: Path) -> None:
    h5py = pytest.importorskip("h5py")
    source = tmp_path / "vgg19_weights_tf_dim_ordering_tf_kernels_notop.h5"
    with h5py.File(source, "w") as file:
        file.create_group("block1_pool")  # layers without weights have a group too
        for name, value in keras_state(features19, False).items():
            file[name] = value
    encoder = imported(source, "vgg19-caffe", Options(pool="none"))
    assert encoder.prepare is not None and (encoder.dim, encoder.tags) == (512, 0)
    pixels = encoder.prepare(picture(240, 320))
    x = torch.from_numpy(pixels[:, :, ::-1].astype(np.float32) - np.array([103.939, 116.779, 123.68], np.float32))
    with torch.inference_mode():
        expected = features19.features(x.permute(2, 0, 1)[None])
        maps, logits = encoder.run(torch.from_numpy(pixels)[None])
    assert logits is None and maps.shape == (1, 7, 7, 512) and far(maps.permute(0, 3, 1, 2), expected) < CLOSE


def test_class_scores_can_be_left_out(features19: nn.Module) -> None:
    """Then the dense layers, most of the memory, are not held."""
    with torch.device("meta"):
        top = torchvision.models.vgg19(weights=None).classifier.state_dict()
    state = {**features19.state_dict(), **{f"classifier.{name}": value for name, value in top.items()}}
    network = vgg.Vgg19(state, CPU, top=False)
    assert not network.top and network.classifier is None
    with torch.inference_mode():
        maps, logits = network(torch.zeros(1, 3, 64, 64))
    assert maps.shape == (1, 512, 2, 2) and logits is None


def test_keras_first_dense_layer_reads_the_map_row_by_row() -> None:
    torch.manual_seed(0)
    maps, kernel = torch.randn(2, 512, 7, 7), torch.randn(7 * 7 * 512, 5)
    name, weight = vgg._from_keras("fc1/fc1_W_1:0", kernel)
    assert name == "classifier.0.weight"
    torch.testing.assert_close(
        F.linear(maps.flatten(1), weight), maps.permute(0, 2, 3, 1).flatten(1) @ kernel, rtol=1e-4, atol=1e-3
    )
    name, weight = vgg._from_keras("predictions/predictions/kernel:0", kernel)
    assert name == "classifier.6.weight" and weight.shape == (5, 7 * 7 * 512)


# ---------------------------------------------------------------- refused


def test_weights_of_another_network_are_refused() -> None:
    with torch.device("meta"):
        other = torchvision.models.resnet18(weights=None).state_dict()
    with pytest.raises(WeightsError, match="not those of the network 'resnet50'"):
        resnet.from_upstream(other)
    with pytest.raises(WeightsError, match="vgg19"):
        vgg.from_upstream(other)
    with pytest.raises(WeightsError) as caught:
        vgg.from_keras({"block6_conv1/block6_conv1_W_1:0": np.zeros((3, 3, 3, 64), np.float32)})
    assert "block6_conv1" in caught.value.why and "\n" not in caught.value.why
    with pytest.raises(WeightsError, match="resnet50"):
        resnet.from_upstream({"conv1.weight": "text"})


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("resnet50-v1", Options(pool="max")),
        ("mini", Options(pool="none")),
        ("vgg19", Options(protocol="x")),
    ],
)
def test_options_that_are_not_there_are_refused(name: str, options: Options) -> None:
    with pytest.raises(UsageError, match="no "):
        catalog.VISUAL[name](CPU, options)


def test_bf16_is_near_and_only_when_asked_for() -> None:
    state = shake(empty(lambda: torchvision.models.mobilenet_v2(weights=None))).state_dict()
    pixels = torch.from_numpy(pictures.Size(256)(picture()))[None]
    with torch.inference_mode():
        exact, _ = mobilenet.MobileNetV2(state, CPU)(pictures.imagenet(torch.float32)(pixels))
        near, logits = mobilenet.MobileNetV2(state, CPU, "bf16")(pictures.imagenet(torch.bfloat16)(pixels))
    assert exact.dtype == torch.float32 and near.dtype == logits.dtype == torch.bfloat16
    assert 0 < far(near.float().mean((2, 3)), exact.mean((2, 3))) < 0.15
    with pytest.raises(UsageError, match="no precision 'half'"):
        mobilenet.MobileNetV2(state, CPU, "half")


# ---------------------------------------------------------------- prepacked convolutions


def test_a_packed_convolution_lets_go_of_its_file() -> None:
    """One view of the memory that a file was read into keeps all of it."""
    conv, file = nn.Conv2d(3, 8, 3), torch.randn(8 * 27 + 8)
    conv.weight.data, conv.bias.data = file[: 8 * 27].view(8, 3, 3, 3), file[8 * 27 :]  # type: ignore[union-attr]
    ours = packed.Conv(conv, None, "relu")
    with torch.inference_mode():
        ours(torch.randn(1, 3, 9, 9).to(memory_format=torch.channels_last))
    assert ours.bias is not None and ours.packs == ours.weight.is_mkldnn
    assert ours.bias.untyped_storage().data_ptr() != file.untyped_storage().data_ptr()


def test_prepacked_operators_are_tried_before_they_are_trusted(monkeypatch: pytest.MonkeyPatch) -> None:
    """The self-test passes here, and catches an operator that computes something else."""
    assert packed.operators_work()
    monkeypatch.setattr(packed, "AGREEMENT", -1.0)
    packed.operators_work.cache_clear()
    try:
        assert not packed.operators_work()
        conv = packed.Conv(nn.Conv2d(3, 8, 3), None, "relu")
        assert not conv.packs
    finally:
        packed.operators_work.cache_clear()


@pytest.mark.parametrize("activation", ["none", "relu", "relu6"])
@pytest.mark.parametrize("groups", [1, 8])
@pytest.mark.parametrize("plain", [False, True])
def test_a_folded_convolution_equals_its_layers(
    monkeypatch: pytest.MonkeyPatch, activation: str, groups: int, plain: bool
) -> None:
    if plain:
        monkeypatch.setattr(packed, "operators_work", lambda: False)
    torch.manual_seed(1)
    layers = shake(nn.Sequential(nn.Conv2d(8, 16, 3, 2, 1, groups=groups), nn.BatchNorm2d(16)))
    conv, norm = layers
    assert isinstance(conv, nn.Conv2d) and isinstance(norm, nn.BatchNorm2d)
    ours = packed.Conv(conv, norm, activation)
    assert ours.packs is not plain
    x = 3 * torch.randn(2, 8, 21, 18)
    after = {"none": lambda y: y, "relu": F.relu, "relu6": F.relu6}[activation]
    with torch.inference_mode():
        expected = layers(x)
        torch.testing.assert_close(
            ours(x.contiguous(memory_format=torch.channels_last)), after(expected), rtol=1e-4, atol=1e-4
        )
        if activation != "relu6":
            other = torch.randn_like(expected).contiguous(memory_format=torch.channels_last)
            torch.testing.assert_close(ours(x, other.clone()), after(expected + other), rtol=1e-4, atol=1e-4)
