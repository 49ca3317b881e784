"""What a file's name says of its digest: torch's convention, ``resnet50-0676ba61.pth``.

The names of torchvision's weights end in the first 8 hex digits of their sha256, which torch checks when it
downloads them (``torch.hub.load_state_dict_from_url(check_hash=True)``). Elsewhere 8 digits may be a date,
so this holds for the host that keeps to it.
"""

from __future__ import annotations

import re

from bundles.spec.source import WeightSource

_NAME = re.compile(r"https://download\.pytorch\.org/models/[^?#]*-([0-9a-f]{8})\.pth")


def named_digest(source: WeightSource) -> str:
    """Return the first digits that the digest of an unpinned source must have; none where nobody says.

    >>> named_digest(WeightSource("url:https://download.pytorch.org/models/resnet50-0676ba61.pth"))
    '0676ba61'
    >>> named_digest(WeightSource("url:https://example.org/model-20240131.pth"))
    ''
    """
    found = _NAME.fullmatch(source.address) if source.scheme == "url" else None
    return found.group(1) if found else ""
