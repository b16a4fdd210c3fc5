"""Labels from a file; what test.py makes of them is in tests/benchmarks/test_html_report.py."""

import json

import numpy as np

from data import labels
from data.readers import open_dataset
from tests.data.forms import tar
from tests.support import write_image_folder


def test_names_and_files_in_archives_stay_with_their_images(tmp_path):
    write_image_folder(tmp_path / "images")
    archive = tar(tmp_path / "a.tar", tmp_path / "images" / "val", "val")
    file = tmp_path / "labels.json"
    for source in (tmp_path / "images", archive):
        dataset = open_dataset(source, "val")
        names = [str(name).rpartition("/")[2] for name in dataset.images]
        kept = [1, 3]
        file.write_text(json.dumps({names[i]: dataset.classes[0] for i in kept}))
        chosen = labels.with_labels(dataset, file)
        expected = [i for i, name in enumerate(names) if name in {names[k] for k in kept}]
        assert list(map(str, chosen.images)) == [str(dataset.images[i]) for i in expected]
        assert list(chosen.names) == [dataset.names[i] for i in expected]
        assert type(chosen.images) is type(dataset.images)
        np.testing.assert_array_equal(chosen.labels.argmax(axis=1), 0)


def test_hugging_faces_names_have_the_class_behind_the_number(tmp_path):
    """As ILSVRC2012_val_00000002_n01440764.JPEG; ImageNet-ReaL's list goes by the number."""
    folder = tmp_path / "val/n01440764"
    folder.mkdir(parents=True)
    for number in (1, 2):
        (folder / f"ILSVRC2012_val_{number:08d}_n01440764.JPEG").write_bytes(b"-")
    (tmp_path / "real.json").write_text(json.dumps([[], [0]]))
    chosen = labels.with_labels(open_dataset(tmp_path, "val"), tmp_path / "real.json")
    assert [str(image)[-16:] for image in chosen.images] == ["2_n01440764.JPEG"]
