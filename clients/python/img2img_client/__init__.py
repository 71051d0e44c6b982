"""The Python client of img2img-server.

from img2img_client import Client

with Client("http://127.0.0.1:8000") as client:
    result = client.image_to_image("in.png", "a blue circle", image_strength=0.35)
result.image.show()
"""

from __future__ import annotations

from img2img_client.answers import Account, Credits, ImageToImageError, Progress, Result
from img2img_client.client import AsyncClient, Client
from img2img_client.forms import FieldValue, ImageFormat, ImageSource

__all__ = [
    "Account",
    "AsyncClient",
    "Client",
    "Credits",
    "FieldValue",
    "ImageFormat",
    "ImageSource",
    "ImageToImageError",
    "Progress",
    "Result",
]

__version__ = "0.1.0"
