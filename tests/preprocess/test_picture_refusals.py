"""Pictures that cannot be used are refused before they are decoded."""

import pytest

from mmdeploy_ext.core.errors import ImageError
from mmdeploy_ext.preprocess.pictures import read_image
from refusals import PICTURE


def test_a_jpeg_that_is_damaged_in_the_middle(tmp_path):
    content = PICTURE.read_bytes()
    middle = len(content) // 2
    (tmp_path / 'a.jpg').write_bytes(content[:middle] + bytes(400) + content[middle + 400 :])
    with pytest.raises(ImageError, match=r'a\.jpg'):
        read_image(tmp_path / 'a.jpg')
