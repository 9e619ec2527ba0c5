"""Pretraining of classifiers: order of the pictures, a short run, resume, distillation, a tracker's start."""

import gzip
import io
import tarfile
from itertools import islice

import cv2
import numpy as np
import pytest
import torch

import correlation_aware as ca
from correlation_aware.training.classify import ClassifyTraining, Images, make_classify_trainer
from correlation_aware.training.config import load
from correlation_aware.training.shards import ShardReader
from correlation_aware.weights import read_state_dict


@pytest.fixture
def pictures(tmp_path):
    random = np.random.default_rng(0)
    for subset, number in (("train", 3), ("val", 2)):
        for name in ("ant", "bee", "cat"):
            folder = tmp_path / subset / name
            folder.mkdir(parents=True)
            for i in range(number):
                cv2.imwrite(str(folder / f"{i}.png"), random.integers(0, 256, (70, 80, 3), dtype=np.uint8))
    return tmp_path


def make_config(pictures, *changes):
    settings = ["model.name=sbt_test_cls", "data.size=64", "data.workers=0", "data.batch_size=4"]
    settings += [f"data.train={pictures / 'train'}", f"data.val={pictures / 'val'}", "run.log_every=1"]
    return load(ClassifyTraining, None, [*settings, "schedule.steps=4", "schedule.warmup=1", *changes])


class Numbers(torch.utils.data.Dataset):
    """Ten samples: the index, and a number drawn as a transform would."""

    def __len__(self):
        return 10

    def __getitem__(self, index):
        return torch.tensor([index, np.random.rand(), torch.rand(()).item()]), index


def test_batches_depend_on_their_number_alone():
    straight = list(islice(Images(Numbers(), 4, seed=1).batches(0, 1), 6))
    strided = list(islice(Images(Numbers(), 4, seed=1).batches(1, 2), 3))
    for a, b in zip(straight[1::2], strided):
        assert torch.equal(a.images, b.images)
    labels = torch.cat([batch.labels for batch in straight]).tolist()
    assert sorted(labels[:10]) == sorted(labels[10:20]) == list(range(10))  # an epoch sees each once
    assert labels[:10] != labels[10:20]
    drawn = {row[1].item() for batch in straight[:5] for row in batch.images}
    assert len(drawn) == 20  # another one each epoch
    before = torch.get_rng_state()
    next(Images(Numbers(), 4).batches(0, 1))
    assert torch.equal(torch.get_rng_state(), before)


def test_workers_change_nothing():
    alone, helped = (list(islice(Images(Numbers(), 4, workers=n).batches(0, 1), 3)) for n in (0, 1))
    assert all(torch.equal(a.images, b.images) for a, b in zip(alone, helped))


def test_a_run_resumes_and_starts_a_tracker(pictures, tmp_path):
    config, records = make_config(pictures), []
    whole = make_classify_trainer(config, tmp_path / "whole", "cpu").fit(on_record=records.append)
    assert 0 <= records[-1]["val_top1"] <= 1 and records[0]["images_per_s"] > 0
    make_classify_trainer(config, tmp_path / "cut", "cpu").fit(max_minutes=0)
    cut = make_classify_trainer(config, tmp_path / "cut", "cpu").fit(resume=True)
    first, second = (read_state_dict(o.checkpoint / "model.safetensors") for o in (whole, cut))
    assert all(torch.equal(first[name], second[name]) for name in first)
    model = ca.create_model("sbt_test_track")
    report = ca.load_pretrained(model, whole.checkpoint / "weights", partial=True)
    assert any(name.startswith("backbone.stages.2") for name in report.taken)


def test_distillation(pictures, tmp_path):
    teacher = ca.create_model("sbt_test_cls", num_classes=3)
    ca.save_pretrained(teacher, tmp_path / "teacher")
    changes = ["teacher.name=sbt_test_cls", f"teacher.checkpoint={tmp_path}/teacher/model.safetensors"]
    changes += ["data.mixup=0", "data.cutmix=0", "teacher.share=0.25", "schedule.steps=1"]
    records = []
    make_classify_trainer(make_config(pictures, *changes), tmp_path / "run", "cpu").fit(
        on_record=records.append
    )
    r = records[0]
    assert r["loss"] == pytest.approx(0.75 * r["labels"] + 0.25 * r["teacher"], rel=1e-4)


def test_no_pictures(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"data\.train='' is neither a folder"):
        make_classify_trainer(ClassifyTraining(), tmp_path, "cpu")


def pack(pictures, subset, path, first_class=0):
    """The folder as one shard, with classes by number."""
    with tarfile.open(path, "w") as tar:
        for number, picture in enumerate(sorted((pictures / subset).rglob("*.png"))):
            label = first_class + ("ant", "bee", "cat").index(picture.parent.name)
            for name, content in (("png", picture.read_bytes()), ("cls", str(label).encode())):
                info = tarfile.TarInfo(f"{number:06d}.{name}")
                info.size = len(content)
                tar.addfile(info, io.BytesIO(content))


def test_shards_equal_folders(pictures, tmp_path):
    pytest.importorskip("webdataset")
    for subset in ("train", "val"):
        pack(pictures, subset, tmp_path / f"{subset}-000000.tar")
    shards = [f"data.{subset}={tmp_path}/{subset}-{{000000..000000}}.tar" for subset in ("train", "val")]
    logs = []
    for name, changes in (("folders", []), ("shards", shards)):
        config = make_config(pictures, "schedule.steps=2", *changes)
        records = []
        make_classify_trainer(config, tmp_path / name, "cpu").fit(on_record=records.append)
        logs.append([(r.get("loss"), r.get("val_top1")) for r in records])
    assert logs[0] == logs[1]


def test_shards_that_do_not_fit(pictures, tmp_path):
    pytest.importorskip("webdataset")
    pack(pictures, "train", tmp_path / "train.tar")
    pack(pictures, "val", tmp_path / "val.tar", first_class=2)
    changes = [f"data.train={tmp_path}/train.tar", f"data.val={tmp_path}/val.tar"]
    with pytest.raises(ValueError, match=r"has classes up to 4, data\.train up to 2"):
        make_classify_trainer(make_config(pictures, *changes), tmp_path, "cpu")
    (tmp_path / "val.tar.gz").write_bytes(gzip.compress((tmp_path / "val.tar").read_bytes()))
    with pytest.raises(ValueError, match="is not a plain tar file"):
        ShardReader(str((tmp_path / "val.tar.gz").rename(tmp_path / "zipped.tar")))
    with pytest.raises(FileNotFoundError, match="no shard"):
        ShardReader(str(tmp_path / "none.tar"))
    with tarfile.open(tmp_path / "bare.tar", "w") as tar:
        tar.add(next(pictures.rglob("*.png")), "one.png")
    with pytest.raises(ValueError, match=r"1 pictures have no \.cls beside them, such as one"):
        ShardReader(str(tmp_path / "bare.tar"))
