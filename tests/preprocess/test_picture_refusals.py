"""Pictures that cannot be used are refused before they are decoded."""

import cv2
import numpy as np
import pytest

from mmdeploy_ext.core.errors import ImageError
from mmdeploy_ext.preprocess.pictures import read_image, size_in_header
from refusals import PICTURE


@pytest.mark.parametrize('ending', ['.jpg', '.png', '.bmp', '.webp', '.tiff'])
def test_the_header_tells_the_size(ending):
    content = cv2.imencode(ending, np.zeros((37, 53, 3), np.uint8))[1].tobytes()
    assert size_in_header(content) == (37, 53)


def test_a_picture_of_too_many_pixels(tmp_path):
    content = bytearray(cv2.imencode('.png', np.zeros((37, 53, 3), np.uint8))[1].tobytes())
    content[16:24] = (20_000).to_bytes(4, 'big') * 2
    (tmp_path / 'large.png').write_bytes(content)
    with pytest.raises(ImageError, match=r'large\.png.*20000'):
        read_image(tmp_path / 'large.png')


def test_a_jpeg_that_is_damaged_in_the_middle(tmp_path):
    content = PICTURE.read_bytes()
    middle = len(content) // 2
    (tmp_path / 'a.jpg').write_bytes(content[:middle] + bytes(400) + content[middle + 400 :])
    with pytest.raises(ImageError, match=r'a\.jpg'):
        read_image(tmp_path / 'a.jpg')
