"""The readers that `benchmarks.tiling` compares, and what their environments hold."""

from __future__ import annotations

from typing import Final, NamedTuple

_NUMPY: Final = "numpy==2.4.6"
_OPENSLIDE: Final = "openslide-bin==4.0.1.2"
OPENSLIDE_REQUIREMENTS: Final = ("openslide-python==1.4.7", _OPENSLIDE, _NUMPY)


class Peer(NamedTuple):
    """Another reader.

    Args:
        name: Name of the reader in the table.
        requirements: Packages of its environment (see `peers.make_environment`).
        unpinned: Packages installed without their dependencies.
        is_large: Whether that takes minutes to install.
    """

    name: str
    requirements: tuple[str, ...]
    unpinned: tuple[str, ...] = ()
    is_large: bool = False


# As `tiling_peer.py` calls them.
PEERS: Final = {
    "tiffslide": Peer("tiffslide", ("tiffslide==3.0.1",)),
    "cucim": Peer("cuCIM on the CPU", ("cucim-cu12==26.10.0",)),
    "fastslide": Peer("fastslide", ("fastslide==0.8.1", _NUMPY)),
    "histoprep": Peer("HistoPrep", ("histoprep==2.0.5", _OPENSLIDE)),
    "pyvips": Peer("pyvips", ("pyvips[binary]==3.2.0", _NUMPY)),
    "tifffile": Peer("tifffile, imagecodecs", ("tifffile==2026.3.3", "imagecodecs==2026.3.6")),
    # It asks for a scikit-image of which Python 3.11 has no wheel.
    "histolab": Peer(
        "histolab",
        (*OPENSLIDE_REQUIREMENTS, "scikit-image==0.26.0", "certifi==2026.10.18"),
        ("histolab==0.7.0",),
    ),
    # It asks for torch below 2.13, which is not ours, and for much that its reader does without.
    "tiatoolbox": Peer(
        "TIAToolbox",
        (
            *OPENSLIDE_REQUIREMENTS,
            "dask==2026.8.0",
            "defusedxml==0.7.1",
            "imagecodecs==2026.3.6",
            "joblib==1.6.0",
            "matplotlib==3.11.2",
            "opencv-python-headless==5.0.0.93",
            "pandas==3.1.1",
            "psutil==7.2.2",
            "pyyaml==6.0.3",
            "requests==2.34.2",
            "scikit-image==0.26.0",
            "shapely==2.2.0",
            "simpleitk==2.5.7",
            "tifffile==2026.3.3",
            "torch==2.13.0",
            "tqdm==4.70.1",
            "universal-pathlib==0.3.10",
            "zarr==3.1.6",
        ),
        ("tiatoolbox==2.1.3",),
        is_large=True,
    ),
}
