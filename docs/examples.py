"""Let griffe read a section ``Example:`` as it reads ``Examples:``: as sessions, not as quoted text."""

from __future__ import annotations

import re
from typing import Any

import griffe


class ExampleSections(griffe.Extension):  # type: ignore[misc]
    """Rename the sections of docstrings before they are parsed."""

    def on_object(self, *, obj: griffe.Object, **_: Any) -> None:
        """Rename the section of one object.

        Args:
            obj: The object.
        """
        if obj.docstring:
            obj.docstring.value = re.sub(r"^Example:$", "Examples:", obj.docstring.value, flags=re.MULTILINE)
