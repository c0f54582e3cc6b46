"""The review pictures of slides, as artifacts of the flow run."""

from __future__ import annotations

import re
from base64 import b64encode
from collections.abc import Iterable
from hashlib import sha256

from prefect.artifacts import create_image_artifact
from prefect.context import FlowRunContext

from pipeline.io.storage import exists, join, read_bytes
from pipeline.slides.review import shrink_review


def publish_reviews(url: str, slide_ids: Iterable[str]) -> None:
    """Keep a small copy of each slide's review picture as an image artifact.

    The copy travels in the artifact itself, so that the page shows it wherever the picture lies.

    Args:
        url: Folder of the pictures.
        slide_ids: Of the slides; one without a picture is passed over.
    """
    if FlowRunContext.get() is None:
        return
    for slide_id in slide_ids:
        picture = join(url, f"{slide_id}.png")
        if not exists(picture):
            continue
        small = b64encode(shrink_review(read_bytes(picture))).decode()
        create_image_artifact(
            image_url=f"data:image/jpeg;base64,{small}",
            key=name_artifact(slide_id),
            description=f"`{slide_id}`: tissue green, tiles blue, lesions red. Whole: `{picture}`",
        )


def name_artifact(slide_id: str) -> str:
    """A key as Prefect wants it, of lower-case letters, digits and hyphens; no two slides' alike.

    An id that had to be altered is told from others by the start of its digest.
    """
    plain = re.sub(r"[^a-z0-9]+", "-", slide_id.lower()).strip("-")
    if plain != slide_id:
        plain = f"{plain}-{sha256(slide_id.encode()).hexdigest()[:8]}".lstrip("-")
    return f"review-{plain}"
