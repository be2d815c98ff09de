"""Pictures inside of cards, as data URIs: both of Prefect's pages show them, and no other server is asked."""

from __future__ import annotations

import base64
from collections.abc import Iterable
from dataclasses import dataclass

from dvkf_prefect.cards.markdown import Markup, count_text, escape, size_text

PICTURE = 64_000
"""Maximum size of a picture in bytes."""

PICTURES = 256_000
"""Maximum size of all pictures of a card in bytes."""

# First bytes of the images that browsers show.
_KINDS = (
    (b"\x89PNG\r\n\x1a\n", "png"),
    (b"\xff\xd8\xff", "jpeg"),
    (b"GIF8", "gif"),
    (b"<svg", "svg+xml"),
    (b"<?xml", "svg+xml"),
)


@dataclass(frozen=True)
class Picture:
    """An image with its text.

    Attributes:
        name: Text in place of the image, and its title.
        data: Bytes of a PNG, JPEG, GIF, WebP or SVG image.
    """

    name: str
    data: bytes

    @property
    def kind(self) -> str:
        """Subtype of ``image/``, from the first bytes; empty for any other content."""
        if self.data[:4] == b"RIFF" and self.data[8:12] == b"WEBP":
            return "webp"
        start = self.data[:64].lstrip()
        return next((kind for first, kind in _KINDS if start.startswith(first)), "")

    def markdown(self) -> Markup:
        """Return the image inline. A script in an SVG does not run there."""
        return Markup(
            f"![{escape(self.name)}](data:image/{self.kind};base64,{base64.b64encode(self.data).decode()})"
        )


def show_pictures(pictures: Iterable[Picture], *, titles: bool = True) -> list[str]:
    """Return pictures as parts of a card, within `PICTURE` and `PICTURES`. The others are named.

    Args:
        pictures: The pictures.
        titles: Put the name above each picture.
    """
    parts, left_out, total = [], [], 0
    for picture in pictures:
        size = len(picture.data)
        if not picture.kind:
            left_out.append(f"{escape(picture.name)} (no image of a known kind)")
        elif size > PICTURE or total + size > PICTURES:
            left_out.append(f"{escape(picture.name)} ({size_text(size)})")
        else:
            total += size
            parts.append(
                f"### {escape(picture.name)}\n\n{picture.markdown()}" if titles else picture.markdown()
            )
    if left_out:
        shown = ", ".join(left_out[:10]) + ("" if len(left_out) <= 10 else ", …")
        parts.append(f"Not shown, {count_text(len(left_out), 'picture')}: {shown}.")
    return parts
