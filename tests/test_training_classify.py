"""Pretraining of classifiers: order of the images, augmentation, resume, distillation, shards."""

import gzip
import io
import pickle
import random
import tarfile
from itertools import islice
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from torchvision.transforms import functional as vision

import correlation_aware as ca
from correlation_aware import training
from correlation_aware.training.classify import (
    ClassifyTraining,
    ImageBatch,
    ImageData,
    Images,
    _train_transform,
    make_classify_trainer,
)
from correlation_aware.training.config import load
from correlation_aware.training.shards import ShardReader
from correlation_aware.weights import read_state_dict


@pytest.fixture
def images_folder(tmp_path):
    random = np.random.default_rng(0)
    for subset, number in (("train", 3), ("val", 2)):
        for name in ("ant", "bee", "cat"):
            folder = tmp_path / subset / name
            folder.mkdir(parents=True)
            for i in range(number):
                cv2.imwrite(str(folder / f"{i}.png"), random.integers(0, 256, (70, 80, 3), dtype=np.uint8))
    return tmp_path


def make_config(images_folder, *changes):
    settings = ["model.name=sbt_test_cls", "data.size=64", "data.workers=0", "data.batch_size=4"]
    settings += [
        f"data.train={images_folder / 'train'}",
        f"data.val={images_folder / 'val'}",
        "run.log_every=1",
    ]
    return load(ClassifyTraining, None, [*settings, "schedule.steps=4", "schedule.warmup=1", *changes])


class Numbers(torch.utils.data.Dataset):
    """Ten samples: the index and a random number, as a random transform would use."""

    def __len__(self):
        return 10

    def __getitem__(self, index):
        return torch.tensor([index, np.random.rand(), torch.rand(()).item()]), index


def test_batches_depend_only_on_their_number():
    straight = list(islice(Images(Numbers(), 4, seed=1).batches(0, 1), 6))
    strided = list(islice(Images(Numbers(), 4, seed=1).batches(1, 2), 3))
    for a, b in zip(straight[1::2], strided):
        assert torch.equal(a.images, b.images)
    labels = torch.cat([batch.labels for batch in straight]).tolist()
    assert sorted(labels[:10]) == sorted(labels[10:20]) == list(range(10))  # every sample once per epoch
    assert labels[:10] != labels[10:20]
    other = torch.cat([batch.labels for batch in islice(Images(Numbers(), 4, seed=2).batches(0, 1), 3)])
    assert other[:10].tolist() != labels[:10]
    numbers = {row[1].item() for batch in straight[:5] for row in batch.images}
    assert len(numbers) == 20  # a new random number in every epoch
    before = torch.get_rng_state()
    next(Images(Numbers(), 4).batches(0, 1))
    assert torch.equal(torch.get_rng_state(), before)


def test_repeated_augmentation():
    """As in DeiT: an image three times in a row, augmented anew; an epoch of 10 samples has 4 images."""
    batches = list(islice(Images(Numbers(), 4, seed=1, repeats=3).batches(0, 1), 5))
    labels = torch.cat([batch.labels for batch in batches]).tolist()
    for epoch in (labels[:10], labels[10:]):
        assert [epoch[i] for i in (0, 3, 6)] == [epoch[i] for i in (1, 4, 7)] == [epoch[i] for i in (2, 5, 8)]
        assert len(set(epoch)) == 4
    assert labels[:10] != labels[10:]
    numbers = [row[1].item() for batch in batches for row in batch.images]
    assert len(set(numbers)) == 20  # every copy has a random number of its own
    strided = list(islice(Images(Numbers(), 4, seed=1, repeats=3).batches(1, 2), 2))
    assert all(torch.equal(a.images, b.images) for a, b in zip(batches[1::2], strided))


def test_the_recipe_of_pretraining_is_deits(images_folder):
    """Sec. 6.1 and A.1 of the paper, which take the augmentation of DeiT."""
    config = load(ClassifyTraining, Path(training.__file__).with_name("configs") / "classify_imagenet.yaml")
    data, optimizer = config.data, config.optimizer
    assert (data.auto_augment, data.erase, data.mixup, data.cutmix, data.smoothing, data.repeats) == (
        "rand-m9-mstd0.5-inc1",
        0.25,
        0.8,
        1.0,
        0.1,
        3,
    )
    assert (optimizer.lr, optimizer.backbone_lr, optimizer.weight_decay) == (1e-3, 1e-3, 0.05)
    schedule = config.schedule.in_steps(8 * data.batch_size)
    assert (schedule.steps, schedule.decay, data.size) == (375_342, "cosine", 224)
    repeated = make_config(images_folder, "data.repeats=2")
    trainer = make_classify_trainer(repeated, images_folder / "run", "cpu")
    labels = next(iter(trainer.source.batches(0, 1))).labels
    assert labels[0] == labels[1] and labels[2] == labels[3]


def test_batches_do_not_depend_on_the_number_of_workers():
    without, with_worker = (list(islice(Images(Numbers(), 4, workers=n).batches(0, 1), 3)) for n in (0, 1))
    assert all(torch.equal(a.images, b.images) for a, b in zip(without, with_worker))


def test_a_run_resumes_and_its_weights_load_into_a_tracker(images_folder, tmp_path):
    config, records = make_config(images_folder), []
    whole = make_classify_trainer(config, tmp_path / "whole", "cpu").fit(on_record=records.append)
    assert 0 <= records[-1]["val_top1"] <= 1 and records[0]["images_per_s"] > 0
    make_classify_trainer(config, tmp_path / "cut", "cpu").fit(max_minutes=0)
    cut = make_classify_trainer(config, tmp_path / "cut", "cpu").fit(resume=True)
    first, second = (read_state_dict(o.checkpoint / "model.safetensors") for o in (whole, cut))
    assert all(torch.equal(first[name], second[name]) for name in first)
    model = ca.create_model("sbt_test_track")
    report = ca.load_pretrained(model, whole.checkpoint / "weights", partial=True)
    assert any(name.startswith("backbone.stages.2") for name in report.loaded)


def test_distillation(images_folder, tmp_path):
    teacher = ca.create_model("sbt_test_cls", num_classes=3)
    ca.save_pretrained(teacher, tmp_path / "teacher")
    changes = ["teacher.name=sbt_test_cls", f"teacher.checkpoint={tmp_path}/teacher/model.safetensors"]
    changes += ["data.mixup=0", "data.cutmix=0", "teacher.share=0.25", "schedule.steps=1"]
    records = []
    make_classify_trainer(make_config(images_folder, *changes), tmp_path / "run", "cpu").fit(
        on_record=records.append
    )
    r = records[0]
    assert r["loss"] == pytest.approx(0.75 * r["labels"] + 0.25 * r["teacher"], rel=1e-4)


def test_the_temperature_divides_both_logits_and_scales_the_divergence(images_folder, tmp_path):
    """Hinton et al. (2015): both logits divided by t, the divergence multiplied by t^2."""
    teacher = ca.create_model("sbt_test_cls", num_classes=3).eval()
    ca.save_pretrained(teacher, tmp_path / "teacher")
    changes = ["teacher.name=sbt_test_cls", f"teacher.checkpoint={tmp_path}/teacher/model.safetensors"]
    config = make_config(images_folder, *QUIET, *changes, "teacher.temperature=3", "teacher.share=1")
    trainer = make_classify_trainer(config, tmp_path / "run", "cpu")
    images = torch.rand(2, 3, 64, 64)
    with torch.no_grad():
        p = (teacher(images) / 3).softmax(dim=1)
    divergence = (p * (p.log() - (Recorder.logits / 3).log_softmax(dim=0))).sum(dim=1).mean()
    loss = trainer.compute(Recorder(), ImageBatch(images, torch.tensor([0, 1])))["loss"]
    assert loss.item() == pytest.approx(9 * divergence.item(), rel=1e-4)


QUIET = ("data.auto_augment=null", "data.erase=0", "data.mixup=0", "data.cutmix=0", "data.smoothing=0")


def train_images(images_folder, folder, count, *changes):
    """The training images of a run with these settings: (count, 3, 64, 64), normalized."""
    config = make_config(images_folder, f"data.batch_size={count}", *QUIET, *changes)
    return next(make_classify_trainer(config, folder, "cpu").source.batches(0, 1)).images


def fill(images_folder, image):
    """Replaces all training images by one."""
    for path in (images_folder / "train").rglob("*.png"):
        cv2.imwrite(str(path), image)


class Recorder(torch.nn.Module):
    """A network that records its inputs and returns constant logits."""

    logits = torch.tensor([0.5, -1.0, 3.0])

    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(()))
        self.seen = []

    def forward(self, images):
        self.seen.append(images.clone())
        return self.logits.expand(len(images), 3) + self.weight


def one_loss(images_folder, folder, *changes, count=4):
    """Images and labels of a batch, the augmented images that the network gets, and the loss."""
    trainer = make_classify_trainer(make_config(images_folder, *QUIET, *changes), folder, "cpu")
    images, labels = torch.rand(count, 3, 64, 64), torch.arange(count) % 3
    network = Recorder()
    loss = trainer.compute(network, ImageBatch(images.clone(), labels))["loss"]
    return images, labels, network.seen[0], loss.item()


def cross_entropy(targets):
    return -(targets * Recorder.logits.log_softmax(dim=0)).sum(dim=1).mean().item()


def test_mixup_blends_images_and_labels(images_folder, tmp_path):
    images, labels, seen, loss = one_loss(images_folder, tmp_path, "data.mixup=0.8", "data.smoothing=0.3")
    other = images.flip(0)
    share = ((seen - other) * (images - other)).sum() / (images - other).square().sum()
    assert 0.01 < share < 0.99
    torch.testing.assert_close(seen, share * images + (1 - share) * other)
    hot = F.one_hot(labels, 3) * 0.7 + 0.1
    assert loss == pytest.approx(cross_entropy(share * hot + (1 - share) * hot.flip(0)), rel=1e-4)


def test_cutmix_pastes_a_rectangle_and_blends_the_labels(images_folder, tmp_path):
    images, labels, seen, loss = one_loss(images_folder, tmp_path, "data.cutmix=1", "data.smoothing=0.3")
    pasted = (seen == images.flip(0)).all(dim=1)
    assert torch.equal(pasted, (seen != images).any(dim=1)) and (pasted == pasted[0]).all()
    rows, columns = pasted[0].any(dim=1), pasted[0].any(dim=0)
    assert torch.equal(pasted[0], rows[:, None] & columns) and 0 < rows.sum() * columns.sum() < 64 * 64
    share = 1 - pasted[0].float().mean()
    hot = F.one_hot(labels, 3) * 0.7 + 0.1
    assert loss == pytest.approx(cross_entropy(share * hot + (1 - share) * hot.flip(0)), rel=1e-4)


def test_labels_are_smoothed_without_mixup_too(images_folder, tmp_path):
    images, labels, seen, loss = one_loss(images_folder, tmp_path, "data.smoothing=0.3")
    assert torch.equal(seen, images)
    assert loss == pytest.approx(cross_entropy(F.one_hot(labels, 3) * 0.7 + 0.1), rel=1e-5)
    *_, plain = one_loss(images_folder, tmp_path)
    assert plain == pytest.approx(cross_entropy(F.one_hot(labels, 3).float()), rel=1e-5)


def test_random_erasing_fills_a_rectangle_with_noise(images_folder, tmp_path):
    whole, erased = (train_images(images_folder, tmp_path, 6, f"data.erase={erase}") for erase in (0, 1))
    for before, after in zip(whole, erased):
        changed = (before != after).any(dim=0)
        rows, columns = changed.any(dim=1), changed.any(dim=0)
        assert torch.equal(changed, rows[:, None] & columns) and 0.015 < changed.float().mean() < 0.34
        assert after[:, changed].std() == pytest.approx(1, abs=0.3)  # normal noise in every pixel


def test_training_crops_vary_in_size_and_aspect(images_folder, tmp_path):
    fill(images_folder, np.kron(np.indices((10, 10)).sum(0) % 2 * 255, np.ones((8, 8))).astype(np.uint8))
    images = train_images(images_folder, tmp_path, 24).mean(dim=1)
    bright = images > images.mean(dim=(1, 2), keepdim=True)
    across = [int((row[1:] != row[:-1]).sum()) for row in bright[:, 20]]  # edges of the squares
    down = [int((column[1:] != column[:-1]).sum()) for column in bright[:, :, 20]]
    for edges in (across, down):
        assert min(edges) <= 4 and max(edges) >= 7 and len(set(edges)) >= 4
    assert across != down  # the aspect varies too


def test_training_images_are_flipped_and_augmented(images_folder, tmp_path):
    half = np.zeros((80, 80, 3), np.uint8)
    half[:, 40:] = (60, 140, 220)
    fill(images_folder, half)
    images = train_images(images_folder, tmp_path, 24)
    slopes = images[..., 32:].mean(dim=(1, 2, 3)) - images[..., :32].mean(dim=(1, 2, 3))
    assert (slopes > 0.1).sum() >= 4 and (slopes < -0.1).sum() >= 4
    policy = train_images(images_folder, tmp_path, 24, "data.auto_augment=rand-m9-mstd0.5-inc1")
    assert not torch.allclose(policy, images, atol=0.1)


def test_the_default_policy_runs_at_every_level():
    """timm asks for 0 bits of posterize in one of 600 images, which Pillow refuses."""
    transform = _train_transform(ImageData(size=16))
    (policy,) = [t for t in transform.transforms if hasattr(t, "ops")]
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (16, 16, 3), dtype=np.uint8))
    names = set()
    for op in pickle.loads(pickle.dumps(policy)).ops:  # as a worker process gets it
        names.add(op.name)
        op.prob, op.magnitude_std = 1.0, 0
        for op.magnitude in range(11):
            assert op(image).size == (16, 16)
    assert "PosterizeIncreasing" in names and len(names) > 10
    random.seed(0)
    for _ in range(3000):
        policy(image)


def test_validation_uses_the_center_crop_of_every_image(images_folder, tmp_path):
    validate = make_classify_trainer(make_config(images_folder), tmp_path, "cpu").validate
    network = Recorder()
    results = [validate(network) for _ in range(2)]
    assert [r["top1"] for r in results] == pytest.approx([1 / 3, 1 / 3])  # it always predicts class 2
    half = len(network.seen) // 2
    first, second = torch.cat(network.seen[:half]), torch.cat(network.seen[half:])
    assert len(first) == 6 and torch.equal(first, second)
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
    for image, path in zip(first, sorted((images_folder / "val").rglob("*.png")), strict=True):
        # as timm validates the model: bicubic, 64 / 0.9
        whole = vision.resize(Image.open(path), 71, vision.InterpolationMode.BICUBIC)
        middle = vision.pil_to_tensor(vision.center_crop(whole, 64)) / 255
        torch.testing.assert_close(image, (middle - mean) / std, rtol=0, atol=1e-4)


def test_missing_images_are_an_error(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"data\.train='' is neither a folder"):
        make_classify_trainer(ClassifyTraining(), tmp_path, "cpu")


def pack(images_folder, subset, path, first_class=0):
    """Writes the folder as one shard, with classes as integers."""
    with tarfile.open(path, "w") as tar:
        for number, image in enumerate(sorted((images_folder / subset).rglob("*.png"))):
            label = first_class + ("ant", "bee", "cat").index(image.parent.name)
            for name, content in (("png", image.read_bytes()), ("cls", str(label).encode())):
                info = tarfile.TarInfo(f"{number:06d}.{name}")
                info.size = len(content)
                tar.addfile(info, io.BytesIO(content))


def test_shards_equal_folders(images_folder, tmp_path):
    pytest.importorskip("webdataset")
    for subset in ("train", "val"):
        pack(images_folder, subset, tmp_path / f"{subset}-000000.tar")
    shards = [f"data.{subset}={tmp_path}/{subset}-{{000000..000000}}.tar" for subset in ("train", "val")]
    logs = []
    for name, changes in (("folders", []), ("shards", shards)):
        config = make_config(images_folder, "schedule.steps=2", *changes)
        records = []
        make_classify_trainer(config, tmp_path / name, "cpu").fit(on_record=records.append)
        logs.append([(r.get("loss"), r.get("val_top1")) for r in records])
    assert logs[0] == logs[1]


def test_unusable_shards_are_errors(images_folder, tmp_path):
    pytest.importorskip("webdataset")
    pack(images_folder, "train", tmp_path / "train.tar")
    pack(images_folder, "val", tmp_path / "val.tar", first_class=2)
    changes = [f"data.train={tmp_path}/train.tar", f"data.val={tmp_path}/val.tar"]
    with pytest.raises(ValueError, match=r"has classes up to 4, data\.train up to 2"):
        make_classify_trainer(make_config(images_folder, *changes), tmp_path, "cpu")
    (tmp_path / "val.tar.gz").write_bytes(gzip.compress((tmp_path / "val.tar").read_bytes()))
    with pytest.raises(ValueError, match="is not an uncompressed tar file"):
        ShardReader(str((tmp_path / "val.tar.gz").rename(tmp_path / "zipped.tar")))
    with pytest.raises(FileNotFoundError, match="no shard"):
        ShardReader(str(tmp_path / "none.tar"))
    with tarfile.open(tmp_path / "bare.tar", "w") as tar:
        tar.add(next(images_folder.rglob("*.png")), "one.png")
    with pytest.raises(ValueError, match=r"1 images have no \.cls entry, such as one"):
        ShardReader(str(tmp_path / "bare.tar"))
