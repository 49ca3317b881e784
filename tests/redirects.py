"""SpeechBrain leaves old names of its modules behind, which the tests of others cannot bear."""

from __future__ import annotations

import sys


def forget_redirects() -> None:
    """Take away the old names: they warn or fail where hypothesis looks at all modules that are loaded."""
    for name in [name for name in sys.modules if name.startswith("speechbrain.")]:
        if type(sys.modules[name]).__name__ == "DeprecatedModuleRedirect":
            del sys.modules[name]
