"""Rigid 4x4 transforms in the precision that StreamPETR was trained with.

Source: exiawsh/StreamPETR 95f6470, datasets/nuscenes_dataset.py: poses and camera extrinsics are float32
matrices, products with the intrinsics float64.
"""

import numpy as np


def rigid_matrix(rotation: np.ndarray, translation: np.ndarray) -> np.ndarray:
    """Return the float32 4x4 matrix [R t; 0 1] of a rotation (3, 3) and a translation (3,) in metres."""
    matrix = np.eye(4, dtype=np.float32)
    matrix[:3, :3] = rotation
    matrix[:3, 3] = translation
    return matrix


def rigid_inverse(matrix: np.ndarray) -> np.ndarray:
    """Return [R^T, -R^T t; 0 1] of a rigid float32 (4, 4), computed in float32."""
    rotation_t = matrix[:3, :3].T
    return rigid_matrix(rotation_t, -(rotation_t @ matrix[:3, 3]))
