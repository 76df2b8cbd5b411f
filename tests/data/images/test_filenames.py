import pytest

from fsdit.data.images.filenames import is_image_name

IMAGES = """
1.jpg 1.JPEG a/b/1.png n01532829_00000005 1.tar.gz caption.txt.png 1.webp x.unknown readme.jpg
a.txt/1.jpg 1. 0001.zip index/1.jpg
"""
OTHERS = """
1.txt 1.TXT a/1.json 1.jpg.json c3/img_boxes.txt desktop.ini Desktop.INI Thumbs.db README README.md
LICENSE .DS_Store ._1.jpg a/.hidden.png labels.csv meta.xml list.tsv notes.md 000.npy 1.caption
weights.safetensors index.html clip.mp4 1.xmp 0001.cls
images-00000-of-00001.array_record dataset.json.partial
"""


@pytest.mark.parametrize("name", IMAGES.split())
def test_names_that_may_be_images(name):
    assert is_image_name(name)


@pytest.mark.parametrize("name", [*OTHERS.split(), "Icon\r"])
def test_names_that_are_no_images(name):
    assert not is_image_name(name)
