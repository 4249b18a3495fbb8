from __future__ import annotations

import pytest
import torch
from accelerate import Accelerator
from torch.utils.data import DataLoader, Subset

from stabnet import InvalidInputError, InvalidOptionError
from stabnet.data import Dataset, TensorSamples, from_tensors, loader, split


def numbered(n: int = 40, *, dtype: torch.dtype = torch.uint8) -> Dataset:
    """Images whose pixels all hold the sample's number, which is also its label."""
    x = torch.arange(n).reshape(n, 1, 1, 1).expand(n, 3, 4, 4).to(torch.uint8)
    pixels = x if dtype == torch.uint8 else x / 255
    return from_tensors(pixels, torch.arange(n), pixels[:5], torch.arange(5))


def order(batches: DataLoader[tuple[torch.Tensor, torch.Tensor]]) -> list[int]:
    return [int(label) for _, y in batches for label in y]


@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32])
def test_batches_are_pixels_in_the_unit_interval_with_their_labels(dtype: torch.dtype) -> None:
    data = numbered(dtype=dtype)
    sizes = []
    for x, y in loader(data.train, batch_size=16, shuffle=True):
        assert x.dtype == torch.float32
        assert x.shape == (len(y), *data.in_shape)
        assert torch.equal(x, (y / 255).reshape(-1, 1, 1, 1).expand_as(x))
        sizes.append(len(y))
    assert sizes == [16, 16, 8]


def test_bytes_stay_bytes_in_memory() -> None:
    train = numbered().train
    assert isinstance(train, TensorSamples)
    assert train.x.dtype == torch.uint8


def test_each_pass_visits_every_sample_once_in_a_new_order() -> None:
    batches = loader(numbered().train, batch_size=7, shuffle=True)
    first, second = order(batches), order(batches)
    assert sorted(first) == sorted(second) == list(range(40))
    assert first != second


def test_without_shuffling_samples_come_in_order() -> None:
    assert order(loader(numbered().train, batch_size=7)) == list(range(40))


def test_order_is_that_of_the_seed_whatever_the_global_generator() -> None:
    train = numbered().train
    torch.manual_seed(0)
    first = order(loader(train, batch_size=7, shuffle=True, seed=5))
    torch.manual_seed(1)
    assert order(loader(train, batch_size=7, shuffle=True, seed=5)) == first
    assert order(loader(train, batch_size=7, shuffle=True, seed=6)) != first


def test_reseeding_the_generator_repeats_an_epoch() -> None:
    batches = loader(numbered().train, batch_size=7, shuffle=True, seed=5)
    first, second = order(batches), order(batches)
    batches.generator.manual_seed(5)
    assert [order(batches), order(batches)] == [first, second]


def test_reseeding_reaches_a_loader_prepared_by_accelerate() -> None:
    batches = loader(numbered().train, batch_size=7, shuffle=True, seed=5, augment="crop_flip")
    prepared = Accelerator(cpu=True).prepare(batches)
    batches.generator.manual_seed(9)
    first = order(prepared)
    order(prepared)
    batches.generator.manual_seed(9)
    assert order(prepared) == first
    assert sorted(first) == list(range(40))


def test_samples_in_memory_are_fetched_once_per_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    train = numbered().train

    def refuse(self: TensorSamples, index: int) -> None:
        raise AssertionError("a sample was fetched on its own")

    monkeypatch.setattr(TensorSamples, "__getitem__", refuse)
    part = split(numbered(), validation=0.5).train
    assert len(order(loader(train, batch_size=8))) == 40
    assert len(order(loader(part, batch_size=8))) == 20


def test_a_plain_torch_loader_gives_the_same_batches() -> None:
    train = numbered().train
    assert isinstance(train, TensorSamples)
    ours = list(loader(train, batch_size=9))
    theirs = list(DataLoader(train, batch_size=9))
    for (x, y), (x_theirs, y_theirs) in zip(ours, theirs, strict=True):
        assert torch.equal(x, x_theirs)
        assert torch.equal(y, y_theirs)


def test_samples_of_another_kind_are_stacked() -> None:
    pairs = [(torch.full((1, 2, 2), i / 10), torch.tensor(i)) for i in range(6)]
    (x, y), _ = loader(pairs, batch_size=4)
    assert x.shape == (4, 1, 2, 2)
    assert y.tolist() == [0, 1, 2, 3]


def test_a_worker_process_gives_the_same_batches() -> None:
    train = numbered().train
    assert order(loader(train, batch_size=9, shuffle=True, num_workers=1)) == order(
        loader(train, batch_size=9, shuffle=True)
    )


def test_augmentation_is_applied_to_inputs_alone_by_name_or_function() -> None:
    train = numbered().train
    torch.manual_seed(0)
    (x, y), *_ = loader(train, batch_size=40, augment="crop_flip")
    assert y.tolist() == list(range(40))
    assert (x[1:] == 0).any()  # black borders
    (x, y), *_ = loader(train, batch_size=40, augment=lambda images: 1 - images)
    assert torch.equal(x[:, 0, 0, 0], 1 - y / 255)


def test_drop_last_leaves_out_the_partial_batch() -> None:
    batches = loader(numbered().train, batch_size=16, drop_last=True)
    assert [len(y) for _, y in batches] == [16, 16]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batch_size": 0}, "batch_size=0"),
        ({"batch_size": 4, "num_workers": -1}, "num_workers=-1"),
        ({"batch_size": 41, "drop_last": True}, "leaves no batch of 40 samples"),
        ({"batch_size": 4, "augment": "flip"}, "no augmentation 'flip'"),
    ],
)
def test_loader_refuses_options_out_of_range(options: dict[str, object], message: str) -> None:
    with pytest.raises(InvalidOptionError, match=message):
        loader(numbered().train, **options)  # type: ignore[arg-type]


def test_split_is_disjoint_and_complete() -> None:
    parts = split(numbered(), validation=0.25)
    train, validation = ([int(y) for _, y in part] for part in (parts.train, parts.validation))
    assert len(validation) == 10
    assert sorted(train + validation) == list(range(40))
    assert [int(y) for _, y in parts.test] == list(range(5))


def test_split_is_that_of_the_seed_whatever_the_global_generator() -> None:
    def held_out(seed: int, data: Dataset) -> list[int]:
        return [int(y) for _, y in split(data, seed=seed).validation]

    data = numbered()
    torch.manual_seed(0)
    first = held_out(0, data)
    torch.manual_seed(1)
    state = torch.get_rng_state()
    assert held_out(0, data) == first
    assert held_out(1, data) != first
    assert torch.equal(torch.get_rng_state(), state)


def test_split_without_validation_keeps_all_training_samples() -> None:
    parts = split(numbered(), validation=0)
    assert len(parts.validation) == 0
    assert len(parts.train) == 40
    for shuffle in (False, True):
        assert order(parts.loader("validation", batch_size=4, shuffle=shuffle)) == []


def test_split_shares_the_memory_of_the_data_set() -> None:
    data = numbered()
    part = split(data).train
    assert isinstance(part, Subset)
    assert part.dataset is data.train


def test_splits_load_their_parts_and_augment_as_the_data_set_says() -> None:
    x = torch.ones(40, 1, 8, 8)
    y = torch.arange(40)
    data = from_tensors(x, y, x[:5], y[:5], augmentation="crop_flip")
    parts = split(data, validation=0.25, seed=3)
    assert parts.dataset is data
    for name, samples in (
        ("train", parts.train),
        ("validation", parts.validation),
        ("test", data.test),
    ):
        theirs = parts.loader(name, batch_size=4, shuffle=True, seed=1)  # type: ignore[arg-type]
        assert order(theirs) == order(loader(samples, batch_size=4, shuffle=True, seed=1))
    torch.manual_seed(0)
    assert all((images == 1).all() for images, _ in parts.loader("train", batch_size=9))
    assert any(
        (images == 0).any() for images, _ in parts.loader("train", batch_size=9, augment=True)
    )
    with pytest.raises(InvalidOptionError, match="no part 'valid'; parts are train, validation"):
        parts.loader("valid", batch_size=4)  # type: ignore[arg-type]


@pytest.mark.parametrize("validation", [-0.1, 1.0, 0.001, 0.999, float("nan")])
def test_split_refuses_a_share_that_leaves_a_part_empty(validation: float) -> None:
    with pytest.raises(InvalidOptionError, match="validation="):
        split(numbered(), validation=validation)


def test_tensor_samples_refuse_what_they_cannot_fetch() -> None:
    labels = torch.zeros(3, dtype=torch.int64)
    with pytest.raises(InvalidInputError, match="float64"):
        TensorSamples(torch.zeros(3, 2, dtype=torch.float64), labels)
    with pytest.raises(InvalidInputError, match="int32"):
        TensorSamples(torch.zeros(3, 2), labels.int())
    with pytest.raises(InvalidInputError, match="3 inputs but 2 targets"):
        TensorSamples(torch.zeros(3, 2), labels[:2])
