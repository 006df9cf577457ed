"""Masks of the Semantic Boundaries Dataset (Hariharan et al. 2011), stored as MATLAB structures."""

from io import BytesIO

import numpy as np
from jaxtyping import UInt8
from scipy.io import loadmat


def read_mask(content: bytes) -> UInt8[np.ndarray, "H W"]:
    """Class indices 0..20 in the bytes of `cls/<id>.mat`, the field `GTcls.Segmentation`; SBD knows no 255.

    Raises:
        ValueError: the file is no MATLAB file, or holds no such field.
    """
    try:
        # Broken files make scipy raise a dozen types of error, some of its own.
        mask = np.asarray(loadmat(BytesIO(content), variable_names=["GTcls"])["GTcls"][0]["Segmentation"][0])
    except Exception as error:
        raise ValueError(f"no mask GTcls.Segmentation can be read from it ({type(error).__name__}: {error})") from error
    if mask.ndim != 2 or mask.dtype.kind not in "ui" or mask.min(initial=0) < 0 or mask.max(initial=0) > 255:
        raise ValueError(f"GTcls.Segmentation is no picture of class indices ({mask.dtype} of shape {mask.shape})")
    return mask.astype(np.uint8)
