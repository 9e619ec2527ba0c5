"""Old names of dataclass fields: they work as the new ones do, and warn."""

from dataclasses import asdict, dataclass, replace

import pytest

from correlation_aware._deprecation import current_fields, renamed_fields
from correlation_aware.data.photometric import PhotometricConfig
from correlation_aware.data.videos.video_pairs import VideoConfig


@renamed_fields(colour="color")
@dataclass(frozen=True)
class Paint:
    color: int = 1
    layers: int = 2


def test_an_old_name_sets_and_reads_the_field_and_warns():
    with pytest.warns(DeprecationWarning, match=r"Paint\.colour is now called color") as warned:
        paint = Paint(colour=3, layers=4)
    assert paint == Paint(3, 4) and asdict(paint) == {"color": 3, "layers": 4}
    with pytest.warns(DeprecationWarning, match=r"Paint\.colour is now called color") as read:
        assert paint.colour == 3
    assert warned[0].filename == read[0].filename == __file__  # the caller's line, not the package's
    with pytest.raises(ValueError, match="pass only 'color'"):
        Paint(colour=3, color=3)


@pytest.mark.filterwarnings("error")
def test_the_new_names_do_not_warn():
    assert replace(Paint(color=5), layers=6) == Paint(5, 6)
    assert current_fields(Paint, {"color": 5}) == {"color": 5}


def test_the_renamed_fields_of_the_training_data():
    with pytest.warns(DeprecationWarning):
        assert PhotometricConfig(colour=0.5, grey=0.25) == PhotometricConfig(color=0.5, gray=0.25)
    with pytest.warns(DeprecationWarning):
        assert VideoConfig(centre_jitter=0.5) == VideoConfig(center_jitter=0.5)


def test_a_configuration_file_may_have_old_names():
    config = pytest.importorskip("correlation_aware.training.config")
    with pytest.warns(DeprecationWarning, match="centre_jitter"):
        loaded = config.from_mapping(VideoConfig, {"centre_jitter": 0.5, "photometric": {"grey": 1}})
    assert loaded.center_jitter == 0.5 and loaded.photometric.gray == 1
